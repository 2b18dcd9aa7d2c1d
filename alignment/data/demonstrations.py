"""Demonstrations: conversations to imitate."""

import logging
from functools import partial
from pathlib import Path

from alignment.data.columns import Messages, conversation, fail, listed, messages, optional_text
from alignment.data.conversations import joined, require_turns, same_turns, without_system
from alignment.data.jsonl import Row, scan_parsed
from alignment.data.prompts import prompt_turns, with_system
from alignment.digests import prompt_id
from alignment.errors import Fault, FaultCollector, raise_faults
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
    """The demonstrations with their rows, and how many exact duplicates were dropped. Raises InputError."""
    demonstrations, duplicates, faults = scan_demonstrations(path)
    raise_faults(faults)
    return demonstrations, duplicates


def scan_demonstrations(path: Path) -> tuple[list[tuple[int, Demonstration]], int, list[Fault]]:
    """The demonstrations of the rows that are right, how many exact duplicates were dropped, and the others' faults."""
    rows, faults = scan_parsed(path, _demonstration)
    first: dict[str, tuple[int, Demonstration]] = {}
    for row, demonstration in rows:
        first.setdefault(demonstration.id, (row, demonstration))
    return list(first.values()), len(rows) - len(first), faults


def _demonstration(row: Row) -> Demonstration:
    faults = FaultCollector()
    turns = faults.attempt(lambda: _turns(row), ())
    kind, source = (faults.attempt(partial(optional_text, row, name), None) for name in ("kind", "source"))
    faults.raise_all()
    return Demonstration(id=prompt_id(turns), messages=turns, kind=kind or "general", source=source or "")


def _turns(row: Row) -> Messages:
    answers = [name for name in ("completion", "response") if name in row]
    if "messages" in row and not answers:
        turns = require_turns(with_system(row, messages(row, "messages")), "assistant", "messages")
        if row.get("prompt") is not None:
            prompt_turns(row)  # which must be how the messages begin
        return turns
    if ("prompt" not in row and row.get("messages") is None) or not answers:
        fail(
            f"no demonstration among the columns {listed(row)}",
            'name the columns "messages", or "prompt" and "completion" (or "response")',
        )
    if len(answers) > 1:
        fail("both completion and response are there", "keep one of them", "response")
    faults = FaultCollector()
    prompt = faults.attempt(lambda: prompt_turns(row), ())
    completion = faults.attempt(lambda: conversation(row, answers[0], "assistant"), ())
    faults.raise_all()
    turns = require_turns(joined(prompt, completion, answers[0]), "assistant", answers[0])
    if row.get("prompt") is not None and row.get("messages") is not None:
        whole, own = (without_system(given) for given in (messages(row, "messages"), turns))
        if not same_turns(whole, own[: len(whole)]):
            fail(f"another conversation than prompt and {answers[0]}", "keep one of the two", "messages")
    return turns
