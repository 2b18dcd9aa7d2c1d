"""Prompts: conversations that wait for the assistant's next turn."""

import logging
from pathlib import Path

from alignment.data.columns import conversation, fail, listed, messages, optional_text, require_turns, text
from alignment.data.jsonl import Row, parse_rows, raise_faults
from alignment.data.split import opening, split_by_digest
from alignment.digests import prompt_id
from alignment.errors import Fault
from alignment.records import Message, Prompt

_log = logging.getLogger(__name__)


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file, in its order; exact duplicates are dropped, and their number is logged.

    A row holds ``prompt`` (text, or messages) or ``messages``, and may hold ``system``, ``kind``, ``source`` and
    ``reference``. The id is the digest of the messages.

    Raises:
        InputError: with every fault of the file, by row and field.
    """
    prompts, duplicates = numbered_prompts(path)
    if duplicates:
        _log.warning("%s: %d duplicate prompts left out", path, duplicates)
    return [prompt for _row, prompt in prompts]


def load_prompts(path: Path, held_out: float) -> tuple[list[Prompt], list[Prompt]]:
    """(train, held out) prompts of a file, split by :func:`alignment.data.split.opening`."""
    return split_by_digest(read_prompts(path), held_out, key=opening)


def numbered_prompts(path: Path) -> tuple[list[tuple[int, Prompt]], int]:
    """The prompts with their rows, and how many exact duplicates were dropped."""
    first: dict[str, tuple[int, Prompt]] = {}
    faults: list[Fault] = []
    duplicates = 0
    for row, prompt in parse_rows(path, _prompt):
        seen_row, seen = first.setdefault(prompt.id, (row, prompt))
        if seen_row == row:
            continue
        duplicates += 1
        if seen != prompt:
            names = [name for name in ("kind", "source", "reference") if getattr(seen, name) != getattr(prompt, name)]
            problem = f"the prompt of row {seen_row} again, with another {listed(names)}"
            faults.append(Fault(problem, "keep one of the two rows", str(path), row, names[0]))
    raise_faults(faults)
    return list(first.values()), duplicates


def _prompt(row: Row) -> Prompt:
    turns = prompt_turns(row)
    return Prompt(
        id=prompt_id(turns),
        messages=turns,
        kind=optional_text(row, "kind") or "general",
        source=optional_text(row, "source") or "",
        reference=optional_text(row, "reference"),
    )


def prompt_turns(row: Row) -> tuple[Message, ...]:
    """The messages of a prompt row, the system's first where the column ``system`` is set."""
    if row.get("prompt") is not None:
        turns, field = conversation(row, "prompt", "user"), "prompt"
    elif row.get("messages") is not None:
        turns, field = messages(row, "messages"), "messages"
    elif "prompt" in row or "messages" in row:
        fail("null, not text", "write text, or remove the row", "prompt" if "prompt" in row else "messages")
    else:
        fail(
            f"no prompt among the columns {listed(row)}",
            'name the column "prompt" (text or messages) or "messages"; '
            '"system", "kind", "source" and "reference" may stand beside it',
        )
    return require_turns(with_system(row, turns), "user", field)


def with_system(row: Row, turns: tuple[Message, ...]) -> tuple[Message, ...]:
    """``turns`` after the system message of the column ``system``, where there is one."""
    if row.get("system") is None:
        return turns
    if turns[0].role == "system":
        fail("a system message stands both here and in the messages", "keep one of them", "system")
    return (Message(role="system", content=text(row, "system")), *turns)
