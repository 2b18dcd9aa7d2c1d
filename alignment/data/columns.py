"""The columns of a row, each taken out with its checks. Every function raises InputError naming the field."""

from collections.abc import Iterable
from functools import partial
from typing import Any, NoReturn

from alignment.data.jsonl import Row
from alignment.errors import Fault, FaultCollector, InputError
from alignment.records import Message

Messages = tuple[Message, ...]

_ROLES = ("system", "user", "assistant", "tool")
_MESSAGES = 'write messages as [{"role": "user", "content": "…"}, …]'


def fail(problem: str, remedy: str, field: str | None = None) -> NoReturn:
    """Raises the one fault that makes a row unusable; the file and row are added by the reader."""
    raise InputError([Fault(problem, remedy, field=field)])


def text(row: Row, name: str) -> str:
    """A column that must hold text with something in it."""
    if name not in row:
        fail("missing", f'add the column "{name}"; this row has {listed(row)}', name)
    value = encodable(row[name], name)
    if not value.strip():
        fail("empty", "write the text, or remove the row", name)
    return value


def optional_text(row: Row, name: str) -> str | None:
    """A column that may be missing or null; where it is there, it is text."""
    return None if row.get(name) is None else encodable(row[name], name)


def messages(row: Row, name: str) -> Messages:
    """A column that holds a conversation: a list of messages with role and content."""
    value = row.get(name)
    if not isinstance(value, list) or not value:
        fail("not a list of messages" if value else "no messages", _MESSAGES, name)
    faults = FaultCollector()
    turns = [faults.attempt(partial(_message, item, f"{name}.{at}"), None) for at, item in enumerate(value)]
    faults.raise_all()
    return tuple(turn for turn in turns if turn is not None)


def conversation(row: Row, name: str, role: str) -> Messages:
    """A column that holds either messages or plain text, which is one message of ``role``."""
    if isinstance(row.get(name), list):
        return messages(row, name)
    return (Message.model_validate({"role": role, "content": text(row, name)}),)


def encodable(value: Any, field: str) -> str:
    """``value``, where it is text that can be written as UTF-8."""
    if not isinstance(value, str):
        kind = "null" if value is None else type(value).__name__
        fail(f"{kind}, not text", "write text, or remove the row", field)
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair: JSON can spell it, no tokenizer can read it
        fail("holds half a character (a lone surrogate)", "save the text as UTF-8 again", field)
    return value


def shown(value: object, longest: int = 40) -> str:
    """A value for a sentence, shortened where it is long."""
    whole = str(value)
    return whole if len(whole) <= longest else f"{whole[: longest - 1]}…"


def listed(names: Iterable[object]) -> str:
    """Names for a sentence: ``a, b and c``."""
    shown = [str(name) for name in names]
    if len(shown) < 2:
        return shown[0] if shown else "none"
    return f"{', '.join(shown[:-1])} and {shown[-1]}"


def _message(item: Any, field: str) -> Message:
    if not isinstance(item, dict):
        fail("not a message", _MESSAGES, field)
    unknown = [key for key, value in item.items() if key not in ("role", "content") and value is not None]
    if unknown:  # tool calls, names, images: dropping them silently would change what the message says
        fail(f"unknown part {listed(unknown)}", "keep role and content only", field)
    if item.get("role") not in _ROLES:
        fail(f"unknown role {shown(repr(item.get('role')))}", f"use {listed(_ROLES)}", f"{field}.role")
    return Message(role=item["role"], content=encodable(item.get("content"), f"{field}.content"))
