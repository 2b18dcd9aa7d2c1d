"""Rows of a recipe's files that its training stages will leave out or learn nothing from, by the stages' own rule."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from alignment.chat import render_answer, render_example, render_prompt
from alignment.checks.model import inspect_model
from alignment.data.demonstrations import numbered_demonstrations
from alignment.data.preferences import read_preferences
from alignment.recipe.graph import of_type
from alignment.recipe.resolved import ResolvedRecipe
from alignment.recipe.stages.preferences import PreferenceFileStage
from alignment.records import PreferencePair
from alignment.training.row_counts import cut_pairs, describe_counts, is_cut, is_identical, opposite_pairs
from alignment.workspace import Workspace

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def row_notices(resolved: ResolvedRecipe, workspace: Workspace | None = None) -> list[str]:
    """A line for each stage that trains on a file with such rows; to be asked of a recipe without faults.

    Counted are all pairs of a file, of which a stage holds some out. Votes that are yet to be given are not known.
    """
    tokenizer = inspect_model(resolved.recipe.model, workspace).tokenizer
    return list(_notices(resolved, tokenizer))


def _notices(resolved: ResolvedRecipe, tokenizer: "PreTrainedTokenizerBase") -> Iterator[str]:
    stages, files = resolved.recipe.stages, resolved.data
    sources = dict(of_type(stages, PreferenceFileStage))
    for name, stage in stages.items():
        longest = stage.trained_length()
        if longest is None:
            continue
        counts: dict[str, float] = {}
        if "demonstrations" in stage.data_files(files):
            rows, duplicates = numbered_demonstrations(files["demonstrations"])
            counts = {"duplicates": duplicates} | _demonstration_counts(
                [render_example(tokenizer, demonstration.messages)[1] for _row, demonstration in rows], longest
            )
        elif (source := sources.get(stage.inputs().get("preferences", ("",))[0])) is not None:
            pairs = read_preferences(files["preferences"], source.format, source.limit).pairs
            counts = _pair_counts(pairs, longest, tokenizer, scored="reward_model" in stage.spec.makes)
        if text := describe_counts(counts):
            yield f"{name}: of its rows {text}"


def _demonstration_counts(masks: Sequence[Sequence[bool]], longest: int) -> dict[str, float]:
    learnable = [mask for mask in masks if any(mask[:longest])]
    return {"dropped": len(masks) - len(learnable), "end_cut": sum(is_cut(mask, longest) for mask in learnable)}


def _pair_counts(
    pairs: Sequence[PreferencePair], longest: int, tokenizer: "PreTrainedTokenizerBase", *, scored: bool
) -> dict[str, float]:
    """``scored``: for a model that scores answers, which leaves out pairs that do not fit whole."""
    rows = []
    for pair in pairs:
        chosen, rejected = (render_answer(tokenizer, pair.prompt, text) for text in (pair.chosen, pair.rejected))
        rows.append(
            {"prompt_ids": render_prompt(tokenizer, pair.prompt), "chosen_ids": chosen, "rejected_ids": rejected}
        )
    fitting = [row for row in rows if len(row["prompt_ids"]) < longest and not (scored and cut_pairs([row], longest))]
    learnable = [row for row in fitting if not is_identical(row, longest)]
    return {
        "dropped": len(rows) - len(fitting),
        "identical": len(fitting) - len(learnable),
        "opposite": opposite_pairs(pairs),
        "end_cut": cut_pairs(learnable, longest),
    }
