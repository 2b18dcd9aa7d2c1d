"""Rows of a recipe's files that its training stages will leave out or learn nothing from, by the stages' own rule."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from alignment.chat import render_example, render_prompt
from alignment.checks.encoders.inspect import inspect_encoder
from alignment.checks.pretraining.made_model import inspect_recipe
from alignment.data.demonstrations import numbered_demonstrations
from alignment.data.feedback import numbered_feedback
from alignment.data.pairing import PreferenceFile, Skip
from alignment.data.preferences import read_preferences
from alignment.data.prompts import PromptSplit, split_prompts
from alignment.recipe.graph import of_type
from alignment.recipe.resolved import ResolvedRecipe
from alignment.recipe.stages.feedback.preferences import PreferenceFileStage
from alignment.recipe.stages.spec import StageSettings
from alignment.training.row_counts import Counts, describe_counts, is_cut, sift_pairs, sift_prompts, usable_feedback
from alignment.workspace import Workspace

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def row_notices(resolved: ResolvedRecipe, workspace: Workspace | None = None) -> list[str]:
    """A line for each stage whose file has such rows; to be asked of a recipe without faults."""
    told = {name: describe_counts(counts) for name, counts in row_counts(resolved, workspace).items()}
    return [f"{name}: of its rows {text}" for name, text in told.items() if text]


def row_counts(resolved: ResolvedRecipe, workspace: Workspace | None = None) -> dict[str, Counts]:
    """By stage, the counts of the rows of its file, of all that samples for training or trains on a file.

    Counted are all pairs of a file, of which a stage holds some out. Votes that are yet to be given are not known.
    """
    model = inspect_recipe(resolved, workspace)
    return {} if model is None else dict(_counts(resolved, model.tokenizer))


def _counts(resolved: ResolvedRecipe, tokenizer: "PreTrainedTokenizerBase") -> Iterator[tuple[str, Counts]]:
    stages, files, share = resolved.recipe.stages, resolved.data, resolved.recipe.data.held_out
    sources = dict(of_type(stages, PreferenceFileStage))
    for name, stage in stages.items():
        longest = stage.trained_length()
        if stage.spec.samples and "prompts" in stage.data_files(files):
            yield name, _prompt_counts(split_prompts(files["prompts"], share), stage, tokenizer)
        elif longest is not None and "demonstrations" in stage.data_files(files):
            rows, duplicates = numbered_demonstrations(files["demonstrations"])
            masks = [render_example(tokenizer, demonstration.messages)[1] for _row, demonstration in rows]
            yield name, {"duplicates": float(duplicates)} | _demonstration_counts(masks, longest)
        elif longest is not None and "feedback" in stage.data_files(files):
            feedback, duplicates = numbered_feedback(files["feedback"])
            marked = [one for _row, one in feedback]
            counts = usable_feedback(marked, stage.cut_chosen_used() or "drop")[1]
            long = sum(len(render_prompt(tokenizer, one.prompt)) >= longest for one in marked)
            yield name, counts | {"duplicates": float(duplicates), "dropped": float(long)}
        elif longest is not None and (source := sources.get(stage.inputs().get("preferences", ("",))[0])) is not None:
            read = read_preferences(files["preferences"], source.format, source.limit)
            own = tokenizer if stage.encoder_used() is None else inspect_encoder(stage, files).tokenizer
            yield name, _pair_counts(read, stage, longest, own)


def _prompt_counts(split: PromptSplit, stage: StageSettings, tokenizer: "PreTrainedTokenizerBase") -> Counts:
    return sift_prompts(split.train, tokenizer, stage.longest_prompt(), split.duplicates)[1]


def _demonstration_counts(masks: Sequence[Sequence[bool]], longest: int) -> Counts:
    learnable = [mask for mask in masks if any(mask[:longest])]
    cut = sum(is_cut(mask, longest) for mask in learnable)
    return {"dropped": float(len(masks) - len(learnable)), "end_cut": float(cut)}


def _pair_counts(
    read: PreferenceFile, stage: StageSettings, longest: int, tokenizer: "PreTrainedTokenizerBase"
) -> Counts:
    cut_chosen = stage.cut_chosen_used() or "drop"
    if (shortened := stage.answers_shortened_to()) is not None:
        from alignment.stages.pair_classifier import sift_orders  # brings trainers along

        counts = sift_orders(read.pairs, tokenizer, longest, max_answer_tokens=shortened, cut_chosen=cut_chosen).counts
    else:
        whole = "reward_model" in stage.spec.makes  # it leaves out pairs that do not fit whole
        counts = sift_pairs(read.pairs, tokenizer, longest, whole=whole, cut_chosen=cut_chosen).counts
    return counts | {"duplicates": counts["duplicates"] + read.skipped.get(Skip.DUPLICATE, 0)}
