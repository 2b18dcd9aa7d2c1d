"""Rows that vanish or teach nothing, counted by one rule in stages and in ``rlhf check``.

A stage's metrics name them: ``duplicates`` (the same row again, left out), ``cut_chosen`` (pairs whose chosen answer
was cut off at its longest length, left out unless the recipe keeps them: ``cut_chosen_kept``), ``cut_rejected`` (the
same of the rejected one: trained on, without an end), ``dropped`` (too long to learn from, or an answer without a
token), ``identical`` (pairs whose answers are the same tokens once they are cut, left out: no gradient comes from
them), ``opposite`` (rows that another row contradicts, both trained on) and ``end_cut`` (whole answers that
``max_length`` cuts before their end of turn, which is not learned from them).
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from alignment.chat import PairTokens, render_pair, render_prompt
from alignment.recipe.stages.training import CutChosen
from alignment.records import Feedback, PreferencePair, Prompt
from alignment.stage import StageContext
from alignment.text_rules.encoder import reads_as_encoder, shortest_prompt

WORDS = {
    "duplicates": "{} are duplicates and left out",
    "cut_chosen": "{} prefer an answer that was cut off and are left out",
    "cut_chosen_kept": "{} prefer an answer that was cut off",
    "cut_rejected": "{} reject an answer that was cut off",
    "dropped": "{} are too long and left out",
    "identical": "{} have identical answers and are left out",
    "opposite": "{} are contradicted by another",
    "end_cut": "{} are cut before an answer's end",
}
_log = logging.getLogger(__name__)
Counts = dict[str, float]


@dataclass(frozen=True, slots=True)
class SiftedPairs:
    """Pairs that there is something to learn from, with their tokens, and the ``counts`` of all others."""

    learnable: list[tuple[PreferencePair, PairTokens]]
    counts: Counts


def sift_pairs(
    pairs: Sequence[PreferencePair],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    whole: bool,
    cut_chosen: CutChosen,
) -> SiftedPairs:
    """The pairs that a stage learns from within ``max_length`` tokens. ``whole``: a pair of which anything is cut there
    is left out, as for a model that scores answers."""
    usable, counts = usable_pairs(pairs, cut_chosen)
    rows = [(pair, render_pair(tokenizer, pair)) for pair in usable]
    cuts = whole and reads_as_encoder(tokenizer)  # the prompt, so that the answer is whole
    longest = min(max_length, tokenizer.model_max_length) if cuts else max_length

    def prompt_length(row: PairTokens) -> int:
        return shortest_prompt(tokenizer, row.prompt) if cuts else len(row.prompt)

    fitting = [(pair, row) for pair, row in rows if _fits(row, prompt_length(row), longest, whole=whole)]
    learnable = [(pair, row) for pair, row in fitting if not _teaches_nothing(row, longest, whole=whole)]
    counts |= {
        "dropped": float(len(rows) - len(fitting)),
        "identical": float(len(fitting) - len(learnable)),
        "end_cut": 0.0 if whole else float(sum(_end_is_cut(pair, row, longest) for pair, row in learnable)),
    }
    return SiftedPairs(learnable, counts)


def usable_pairs(pairs: Sequence[PreferencePair], cut_chosen: CutChosen) -> tuple[list[PreferencePair], Counts]:
    """Each pair once, without those whose chosen answer was cut off unless they are to be kept; and the counts."""
    first: dict[object, PreferencePair] = {}
    for pair in pairs:
        first.setdefault((pair.prompt, pair.chosen, pair.rejected), pair)
    distinct = list(first.values())
    cut = sum(not pair.chosen_finished for pair in distinct)
    usable = [pair for pair in distinct if pair.chosen_finished or cut_chosen == "keep"]
    return usable, {
        "duplicates": float(len(pairs) - len(distinct)),
        "cut_chosen": float(len(distinct) - len(usable)),
        "cut_chosen_kept": float(cut if cut_chosen == "keep" else 0),
        "cut_rejected": float(sum(not pair.rejected_finished for pair in usable)),
        "opposite": float(opposite_pairs(usable)),
    }


def usable_feedback(feedback: Sequence[Feedback], cut_chosen: CutChosen) -> tuple[list[Feedback], Counts]:
    """Marked answers without the good ones that were cut off, unless they are to be kept; and the counts."""
    cut = sum(one.label and not one.finished for one in feedback)
    usable = [one for one in feedback if one.finished or not one.label or cut_chosen == "keep"]
    marks = {(one.prompt, one.completion, one.label) for one in usable}
    return usable, {
        "cut_chosen": float(len(feedback) - len(usable)),
        "cut_chosen_kept": float(cut if cut_chosen == "keep" else 0),
        "cut_rejected": float(sum(not one.finished and not one.label for one in usable)),
        "opposite": float(sum((one.prompt, one.completion, not one.label) in marks for one in usable)),
    }


def sift_prompts(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, longest: int | None, duplicates: int
) -> tuple[list[Prompt], Counts]:
    """The prompts of at most ``longest`` tokens (None: all of them), and the counts of the others.

    ``duplicates`` are those that were left out when their file was read.
    """
    fitting = [
        prompt for prompt in prompts if longest is None or len(render_prompt(tokenizer, prompt.messages)) <= longest
    ]
    return fitting, {"duplicates": float(duplicates), "dropped": float(len(prompts) - len(fitting))}


def duplicates_before(context: StageContext, preferences: str) -> int:
    """Pairs of the file behind the stage ``preferences`` that were left out there, because they stand in it twice."""
    return int(context.inputs[preferences].metrics.get("skipped.duplicate", 0))


def cut_remedy(counts: Mapping[str, float]) -> str:
    """What to do where no pair is left because of those whose chosen answer was cut off; empty where there are none."""
    if not counts["cut_chosen"]:
        return ""
    return (
        f"; {int(counts['cut_chosen'])} prefer an answer that was cut off: raise max_new_tokens where the answers are "
        "drawn, or set cut_chosen to keep"
    )


def is_identical(row: PairTokens, max_length: int) -> bool:
    """Whether a pair's answers are the same tokens within ``max_length``, which their prompt is part of."""
    room = max(0, max_length - len(row.prompt))
    return row.chosen[:room] == row.rejected[:room]


def is_cut(answer_mask: Sequence[bool], max_length: int) -> bool:
    """Whether the last token that a conversation teaches, an end of turn, is beyond ``max_length``."""
    return any(answer_mask[max_length:])


def opposite_pairs(pairs: Sequence[PreferencePair]) -> int:
    """Pairs that prefer one answer to a prompt where others of them prefer the other of the same two."""
    seen = {(pair.prompt, pair.chosen, pair.rejected) for pair in pairs}
    return sum(pair.chosen != pair.rejected and (pair.prompt, pair.rejected, pair.chosen) in seen for pair in pairs)


def describe_counts(counts: Mapping[str, float]) -> str:
    """What of a stage's rows vanished or teaches nothing, in words; empty where that is none."""
    words = {name: text.format(int(counts[name])) for name, text in WORDS.items() if counts.get(name)}
    return ", ".join(words.values())


def log_counts(context: StageContext, counts: Mapping[str, float]) -> None:
    """Says it in the log, which the terminal shows."""
    if context.rank == 0 and (text := describe_counts(counts)):
        _log.warning("%s: of its rows %s", context.name, text)


def _fits(row: PairTokens, prompt: int, max_length: int, *, whole: bool) -> bool:
    """Whether a pair whose prompt takes so many tokens fits, ``whole`` or the first token of its answers."""
    longest = max(len(row.chosen), len(row.rejected)) if whole else 1
    return bool(row.chosen and row.rejected) and prompt + longest <= max_length


def _teaches_nothing(row: PairTokens, max_length: int, *, whole: bool) -> bool:
    return row.chosen == row.rejected if whole else is_identical(row, max_length)


def _end_is_cut(pair: PreferencePair, row: PairTokens, max_length: int) -> bool:
    """Whether the end of turn of an answer that has one is beyond ``max_length``."""
    sides = ((pair.chosen_finished, row.chosen), (pair.rejected_finished, row.rejected))
    return any(finished and len(row.prompt) + len(answer) > max_length for finished, answer in sides)
