"""TRL's preference columns: ``prompt``, ``chosen``, ``rejected``, and ``margin`` where the strength is known.

Beside them ``chosen_finished`` and ``rejected_finished`` may say false of an answer that was cut off.

Three forms occur: plain text; messages with an explicit prompt; and messages where ``chosen`` and ``rejected`` hold the
whole conversation (the prompt column is then absent, or repeats its beginning). Plain text without a prompt is refused:
a common beginning of two texts is not a prompt, but often the first words of both answers.
"""

import math
from functools import partial

from alignment.data import hh_rlhf
from alignment.data.columns import Messages, conversation, fail, listed, optional_text, shown
from alignment.data.conversations import joined, require_turns
from alignment.data.jsonl import Row
from alignment.data.pairing import Skip, compare
from alignment.data.prompts import prompt_turns, with_system
from alignment.errors import FaultCollector
from alignment.records import PreferencePair

LARGEST_MARGIN = 1e6  # margins are differences of scores or ranks; float32 holds such a number to a sixteenth


def parse(row: Row) -> list[PreferencePair | Skip]:
    """The pair of one row. Raises InputError where the row's author can mend it, an identical pair included."""
    missing = [name for name in ("chosen", "rejected") if name not in row]
    if missing:
        fail(
            f"no {listed(missing)} among the columns {listed(row)}", "name them prompt, chosen and rejected", missing[0]
        )
    faults = FaultCollector()
    prompt = faults.attempt(lambda: prompt_turns(row), None) if row.get("prompt") is not None else None
    readable = prompt is not None or row.get("prompt") is None  # else both dialogues would only echo its fault
    chosen, rejected = (
        faults.attempt(partial(_dialogue, row, name, prompt), ()) if readable else () for name in ("chosen", "rejected")
    )
    margin = faults.attempt(lambda: _margin(row), None)
    kind = faults.attempt(lambda: optional_text(row, "kind"), None)
    ended = [faults.attempt(partial(_finished, row, f"{name}_finished"), True) for name in ("chosen", "rejected")]
    faults.raise_all()
    pair = compare(chosen, rejected, margin=margin, kind=kind or "general", finished=(ended[0], ended[1]))
    if pair is Skip.IDENTICAL:
        fail("identical to chosen", "remove the row, or give the answer that was rejected", "rejected")
    return [pair]


def _dialogue(row: Row, name: str, prompt: Messages | None) -> Messages:
    """The whole conversation that a column stands for, ending with the assistant's answer."""
    if prompt is not None and hh_rlhf.is_dialogue(row[name]) and "Assistant:" in row[name]:
        remedy = "write messages, or leave the column prompt out to have Human: and Assistant: turns read"
        fail("one text holds a whole dialogue, and prompt stands beside it", remedy, name)
    answer = conversation(row, name, "assistant")
    if prompt is None:
        if not isinstance(row[name], list):
            fail("plain text without a prompt", 'add the column "prompt", or write messages', name)
        turns = with_system(row, answer)
    else:
        turns = joined(prompt, answer, name)
    return require_turns(turns, "assistant", name)


def _finished(row: Row, name: str) -> bool:
    value = row.get(name)
    if value is not None and not isinstance(value, bool):
        fail("not true or false", "write false for an answer that was cut off, or leave it out", name)
    return value is not False


def _margin(row: Row) -> float | None:
    value = row.get("margin")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        fail("not a number", "write how much better chosen is, from 0, or leave it out", "margin")
    remedy = "write how much better chosen is, or leave it out"
    if (isinstance(value, float) and not math.isfinite(value)) or value < 0:
        fail(f"{shown(value)} is not a finite number from 0", remedy, "margin")
    if value > LARGEST_MARGIN:
        fail(f"{shown(value)} is more than {LARGEST_MARGIN:,.0f}", remedy, "margin")
    return float(value)
