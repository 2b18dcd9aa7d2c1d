"""Thumbs: single answers that were found good or bad, TRL's unpaired columns ``prompt``, ``completion``, ``label``.

``prompt`` is text or messages, ``completion`` text or the assistant's message, ``label`` true or false. ``system``,
``kind`` and ``finished`` (false for an answer that was cut off) may stand beside them.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from alignment.data.columns import conversation, fail, listed, optional_text
from alignment.data.conversations import joined, require_turns
from alignment.data.jsonl import Row, scan_parsed
from alignment.data.prompts import prompt_turns
from alignment.digests import content_id, prompt_id
from alignment.durable_files import write_text
from alignment.errors import Fault, FaultCollector, raise_faults
from alignment.records import Feedback, Message, PreferencePair

COLUMNS = ("prompt", "completion", "label")


def numbered_feedback(path: Path) -> tuple[list[tuple[int, Feedback]], int]:
    """The answers with their rows, and how many exact duplicates were dropped.

    Raises:
        InputError: with every fault of the file, by row and field.
    """
    feedback, duplicates, faults = scan_feedback(path)
    raise_faults(faults)
    return feedback, duplicates


def scan_feedback(path: Path) -> tuple[list[tuple[int, Feedback]], int, list[Fault]]:
    """The answers of the rows that are right, how many exact duplicates were dropped, and the others' faults."""
    rows, faults = scan_parsed(path, parse_feedback)
    first: dict[str, tuple[int, Feedback]] = {}
    for row, feedback in rows:
        first.setdefault(feedback.id, (row, feedback))
    return list(first.values()), len(rows) - len(first), faults


def parse_feedback(row: Row) -> Feedback:
    """The answer of one row. Raises InputError with every fault of the row."""
    missing = [name for name in COLUMNS if name not in row]
    if missing:
        remedy = "name them prompt, completion and label; pairs of chosen and rejected are read as data.preferences"
        fail(f"no {listed(missing)} among the columns {listed(row)}", remedy, missing[0])
    faults = FaultCollector()
    prompt = faults.attempt(lambda: prompt_turns(row), ())
    answer = faults.attempt(lambda: conversation(row, "completion", "assistant"), ())
    label = faults.attempt(lambda: _label(row), False)
    kind = faults.attempt(lambda: optional_text(row, "kind"), None)
    finished = faults.attempt(lambda: _finished(row), True)
    faults.raise_all()
    turns = require_turns(joined(prompt, answer, "completion"), "assistant", "completion")
    return answer_feedback(turns[:-1], turns[-1].content, label, kind=kind or "general", finished=finished)


def answer_feedback(
    prompt: Sequence[Message], completion: str, label: bool, *, kind: str = "general", finished: bool = True
) -> Feedback:
    """One marked answer, named by what it holds."""
    turns = tuple(prompt)
    named = [[turn.model_dump(mode="json") for turn in turns], completion, label]
    return Feedback(
        id=content_id(named),
        prompt_id=prompt_id(turns),
        prompt=turns,
        completion=completion,
        label=label,
        kind=kind,
        finished=finished,
    )


def feedback_of_pairs(pairs: Iterable[PreferencePair]) -> list[Feedback]:
    """Both answers of each pair, the chosen one desirable and the rejected one not; each marked answer once."""
    found: dict[str, Feedback] = {}
    for pair in pairs:
        for text, label, finished in (
            (pair.chosen, True, pair.chosen_finished), (pair.rejected, False, pair.rejected_finished),
        ):  # fmt: skip
            feedback = answer_feedback(pair.prompt, text, label, kind=pair.kind, finished=finished)
            found.setdefault(feedback.id, feedback)
    return list(found.values())


def write_feedback(path: Path, feedback: Iterable[Feedback]) -> None:
    """Writes the columns that :func:`scan_feedback` reads, a row a line, all of them or nothing."""
    lines = []
    for one in feedback:
        row = {"prompt": [turn.model_dump() for turn in one.prompt], "completion": one.completion, "label": one.label}
        lines.append(json.dumps(row if one.finished else row | {"finished": False}, ensure_ascii=False) + "\n")
    write_text(path, "".join(lines))


def _label(row: Row) -> bool:
    value = row["label"]
    if not isinstance(value, bool):
        fail("not true or false", "write true for a good answer and false for a bad one", "label")
    return value


def _finished(row: Row) -> bool:
    value = row.get("finished")
    if value is not None and not isinstance(value, bool):
        fail("not true or false", "write false for an answer that was cut off, or leave it out", "finished")
    return value is not False
