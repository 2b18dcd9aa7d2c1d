"""TRL's preference columns: ``prompt``, ``chosen``, ``rejected``, and ``margin`` where the strength is known.

Three forms occur: plain text; messages with an explicit prompt; and messages where ``chosen`` and ``rejected`` hold the
whole conversation (the prompt column is then absent, or repeats its beginning). Plain text without a prompt is refused:
a common beginning of two texts is not a prompt, but often the first words of both answers.
"""

import math

from alignment.data.columns import Messages, conversation, fail, listed, optional_text, require_turns
from alignment.data.jsonl import Row
from alignment.data.pairing import Skip, compare
from alignment.data.prompts import prompt_turns, with_system
from alignment.records import PreferencePair


def parse(row: Row) -> list[PreferencePair | Skip]:
    """The pair of one row. Raises InputError where the row's author can mend it, an identical pair included."""
    missing = [name for name in ("chosen", "rejected") if name not in row]
    if missing:
        fail(
            f"no {listed(missing)} among the columns {listed(row)}", "name them prompt, chosen and rejected", missing[0]
        )
    prompt = prompt_turns(row) if row.get("prompt") is not None else None
    chosen = _dialogue(row, "chosen", prompt)
    rejected = _dialogue(row, "rejected", prompt)
    pair = compare(chosen, rejected, margin=_margin(row), kind=optional_text(row, "kind") or "general")
    if pair is Skip.IDENTICAL:
        fail("identical to chosen", "remove the row, or give the answer that was rejected", "rejected")
    if isinstance(pair, PreferencePair):
        require_turns(pair.prompt, "user", "prompt" if prompt else "chosen")
    return [pair]


def _dialogue(row: Row, name: str, prompt: Messages | None) -> Messages:
    """The whole conversation that a column stands for, ending with the assistant's answer."""
    answer = conversation(row, name, "assistant")
    if prompt is None:
        if not isinstance(row[name], list):
            fail("plain text without a prompt", 'add the column "prompt", or write messages', name)
        turns = with_system(row, answer)
    else:
        turns = answer if answer[: len(prompt)] == prompt else (*prompt, *answer)
    return require_turns(turns, "assistant", name)


def _margin(row: Row) -> float | None:
    value = row.get("margin")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        fail("not a number", "write how much better chosen is, from 0, or leave it out", "margin")
    if not math.isfinite(value) or value < 0:
        fail(f"{value} is not a finite number from 0", "write how much better chosen is, or leave it out", "margin")
    return float(value)
