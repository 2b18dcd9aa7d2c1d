"""Rows that vanish or teach nothing, counted by one rule in stages and in ``rlhf check``.

A stage's metrics name them: ``duplicates`` (left out when the file was read), ``dropped`` (too long to learn from),
``identical`` (pairs whose answers are the same tokens once they are cut, left out: no gradient comes from them),
``opposite`` (rows that another row contradicts, both trained on) and ``end_cut`` (answers that are cut before their end
of turn, which is not learned from them).
"""

import logging
from collections.abc import Mapping, Sequence

from alignment.records import PreferencePair
from alignment.stage import StageContext

WORDS = {
    "duplicates": "{} are duplicates and left out",
    "dropped": "{} are too long and left out",
    "identical": "{} have identical answers and are left out",
    "opposite": "{} are contradicted by another",
    "end_cut": "{} are cut before an answer's end",
}
_log = logging.getLogger(__name__)
Row = Mapping[str, Sequence[int]]


def is_identical(row: Row, max_length: int) -> bool:
    """Whether a pair's answers are the same tokens within ``max_length``.

    ``row`` has ``chosen_ids`` and ``rejected_ids``, which follow ``prompt_ids`` where there are any.
    """
    room = max(0, max_length - len(row.get("prompt_ids", ())))
    return list(row["chosen_ids"][:room]) == list(row["rejected_ids"][:room])


def cut_pairs(rows: Sequence[Row], max_length: int) -> int:
    """Pairs of which an answer is cut before its end."""
    return sum(
        len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])) > max_length for row in rows
    )


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
