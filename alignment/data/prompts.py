"""Prompts: conversations that wait for the assistant's next turn."""

import json
import logging
from functools import partial
from pathlib import Path
from typing import NamedTuple

from alignment.data.columns import Messages, conversation, fail, listed, messages, optional_text, text
from alignment.data.conversations import require_turns, same_turns, with_system_message, without_system
from alignment.data.jsonl import Row, scan_parsed
from alignment.data.split import opening, split_by_digest
from alignment.digests import prompt_id
from alignment.errors import Fault, FaultCollector, raise_faults
from alignment.records import Prompt

_log = logging.getLogger(__name__)


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file, in its order; exact duplicates are dropped, and their number is logged.

    A row holds ``prompt`` (text, or messages) or ``messages``, and may hold ``system``, ``kind``, ``source`` and
    ``reference``, or IFEval's ``instruction_id_list`` and ``kwargs``. The id is the digest of the messages.

    Raises:
        InputError: with every fault of the file, by row and field.
    """
    prompts, duplicates = numbered_prompts(path)
    if duplicates:
        _log.warning("%s: %d duplicate prompts left out", path, duplicates)
    return [prompt for _row, prompt in prompts]


class PromptSplit(NamedTuple):
    """The prompts of a file to train on, those that are held out, and how many exact duplicates were left out."""

    train: list[Prompt]
    held_out: list[Prompt]
    duplicates: int


def split_prompts(path: Path, held_out: float) -> PromptSplit:
    """A file's prompts, split by :func:`alignment.data.split.opening`. Raises InputError with every fault."""
    numbered, duplicates = numbered_prompts(path)
    return PromptSplit(*split_by_digest([prompt for _row, prompt in numbered], held_out, key=opening), duplicates)


def load_prompts(path: Path, held_out: float) -> tuple[list[Prompt], list[Prompt]]:
    """(train, held out) prompts of a file: :func:`split_prompts` where nobody counts."""
    split = split_prompts(path, held_out)
    return split.train, split.held_out


def numbered_prompts(path: Path) -> tuple[list[tuple[int, Prompt]], int]:
    """The prompts with their rows, and how many exact duplicates were dropped. Raises InputError with every fault."""
    prompts, duplicates, faults = scan_prompts(path)
    raise_faults(faults)
    return prompts, duplicates


def scan_prompts(path: Path) -> tuple[list[tuple[int, Prompt]], int, list[Fault]]:
    """The prompts of the rows that are right, how many exact duplicates were dropped, and the faults of the others."""
    first: dict[str, tuple[int, Prompt]] = {}
    rows, faults = scan_parsed(path, parse_prompt)
    duplicates = 0
    for row, prompt in rows:
        seen_row, seen = first.setdefault(prompt.id, (row, prompt))
        if seen_row == row:
            continue
        duplicates += 1
        if seen != prompt:
            names = [name for name in ("kind", "source", "reference") if getattr(seen, name) != getattr(prompt, name)]
            problem = f"the prompt of row {seen_row} again, with another {listed(names)}"
            faults.append(Fault(problem, "keep one of the two rows", str(path), row, names[0]))
    return list(first.values()), duplicates, sorted(faults, key=lambda fault: fault.row or 0)


def parse_prompt(row: Row) -> Prompt:
    """The prompt of one row. Raises InputError with every fault of the row."""
    faults = FaultCollector()
    turns = faults.attempt(lambda: prompt_turns(row), ())
    kind, source, reference = (
        faults.attempt(partial(optional_text, row, name), None) for name in ("kind", "source", "reference")
    )
    asked = faults.attempt(lambda: instructions(row), None)
    if asked is not None and reference is not None:
        faults.attempt(lambda: fail("a reference beside instructions", "keep one of the two", "reference"), None)
    faults.raise_all()
    reference = reference if asked is None else asked
    return Prompt(id=prompt_id(turns), messages=turns, kind=kind or "general", source=source or "", reference=reference)


def instructions(row: Row) -> str | None:
    """IFEval's columns ``instruction_id_list`` and ``kwargs`` as one text, the reference of their prompt; None where
    they are not there. Arguments that are null are left out: tables hold every argument in every row."""
    named, kwargs = row.get("instruction_id_list"), row.get("kwargs")
    if named is None and kwargs is None:
        return None
    if not isinstance(named, list) or not named or not all(isinstance(name, str) for name in named):
        fail("no list of instructions", 'name them as IFEval does: ["punctuation:no_comma"]', "instruction_id_list")
    if not isinstance(kwargs, list) or len(kwargs) != len(named) or not all(isinstance(one, dict) for one in kwargs):
        problem = f"no list of {len(named)} mappings, one for each instruction"
        fail(problem, "give {} to an instruction without arguments", "kwargs")
    given = [{name: value for name, value in one.items() if value is not None} for one in kwargs]
    return json.dumps({"instruction_id_list": named, "kwargs": given}, ensure_ascii=False, sort_keys=True)


def prompt_turns(row: Row) -> Messages:
    """The messages of a prompt row, the system's first where the column ``system`` is set.

    Where both ``prompt`` and ``messages`` are there, the messages must be the prompt's, or go on from it.
    """
    if row.get("prompt") is not None:
        turns, field = with_system(row, conversation(row, "prompt", "user")), "prompt"
        if row.get("messages") is not None:
            whole, own = (without_system(given) for given in (messages(row, "messages"), turns))
            if not same_turns(own, whole[: len(own)]):
                fail("another conversation than the column prompt", "keep one of the two columns", "messages")
    elif row.get("messages") is not None:
        turns, field = with_system(row, messages(row, "messages")), "messages"
    elif "prompt" in row or "messages" in row:
        fail("null, not text", "write text, or remove the row", "prompt" if "prompt" in row else "messages")
    else:
        fail(
            f"no prompt among the columns {listed(row)}",
            'name the column "prompt" (text or messages) or "messages"; '
            '"system", "kind", "source" and "reference" may stand beside it',
        )
    return require_turns(turns, "user", field)


def with_system(row: Row, turns: Messages) -> Messages:
    """``turns`` after the system message of the column ``system``, where there is one."""
    return with_system_message(turns, None if row.get("system") is None else text(row, "system"))
