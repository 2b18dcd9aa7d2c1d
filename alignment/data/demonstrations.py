"""Demonstrations: conversations to imitate."""

import logging
from pathlib import Path

from alignment.data.columns import Messages, conversation, fail, listed, messages, optional_text, require_turns
from alignment.data.jsonl import Row, parse_rows
from alignment.data.prompts import prompt_turns, with_system
from alignment.digests import prompt_id
from alignment.records import Demonstration

_log = logging.getLogger(__name__)


def read_demonstrations(path: Path) -> list[Demonstration]:
    """The demonstrations of a file, in its order; exact duplicates are dropped, and their number is logged.

    A row holds ``messages``, or ``prompt`` with ``completion`` (or ``response``), each text or messages; ``system``,
    ``kind`` and ``source`` may stand beside them. The last message is the assistant's.

    Raises:
        InputError: with every fault of the file, by row and field.
    """
    demonstrations, duplicates = numbered_demonstrations(path)
    if duplicates:
        _log.warning("%s: %d duplicate demonstrations left out", path, duplicates)
    return [demonstration for _row, demonstration in demonstrations]


def numbered_demonstrations(path: Path) -> tuple[list[tuple[int, Demonstration]], int]:
    """The demonstrations with their rows, and how many exact duplicates were dropped."""
    rows = parse_rows(path, _demonstration)
    first: dict[str, tuple[int, Demonstration]] = {}
    for row, demonstration in rows:
        first.setdefault(demonstration.id, (row, demonstration))
    return list(first.values()), len(rows) - len(first)


def _demonstration(row: Row) -> Demonstration:
    turns = _turns(row)
    return Demonstration(
        id=prompt_id(turns),
        messages=turns,
        kind=optional_text(row, "kind") or "general",
        source=optional_text(row, "source") or "",
    )


def _turns(row: Row) -> Messages:
    answers = [name for name in ("completion", "response") if name in row]
    if "messages" in row and not answers:
        return require_turns(with_system(row, messages(row, "messages")), "assistant", "messages")
    if "prompt" not in row or not answers:
        fail(
            f"no demonstration among the columns {listed(row)}",
            'name the columns "messages", or "prompt" and "completion" (or "response")',
        )
    if len(answers) > 1:
        fail("both completion and response are there", "keep one of them", "response")
    completion = conversation(row, answers[0], "assistant")
    return require_turns((*prompt_turns(row), *completion), "assistant", answers[0])
