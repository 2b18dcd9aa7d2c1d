"""The columns of a row, each taken out with its checks. Every function raises InputError naming the field."""

from collections.abc import Iterable
from typing import Any, NoReturn

from alignment.data.jsonl import Row
from alignment.errors import Fault, InputError
from alignment.records import Message

Messages = tuple[Message, ...]

_ROLES = ("system", "user", "assistant")
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
    return tuple(_message(item, f"{name}.{index}") for index, item in enumerate(value))


def conversation(row: Row, name: str, role: str) -> Messages:
    """A column that holds either messages or plain text, which is one message of ``role``."""
    if isinstance(row.get(name), list):
        return messages(row, name)
    return (Message.model_validate({"role": role, "content": text(row, name)}),)


def require_turns(turns: Messages, last: str, field: str) -> Messages:
    """``turns``, where they are a conversation that ends with a turn of ``last`` that says something.

    A system message may only come first, and the user must speak before the assistant's last turn.
    """
    if any(message.role == "system" for message in turns[1:]):
        fail("a system message comes after the first", "put one system message first", field)
    if turns[-1].role != last:
        fail(f"the last message is of the {turns[-1].role}", f"end with a message of the {last}", field)
    if not turns[-1].content.strip():
        fail(f"the {last}'s last message is empty", "write the text, or remove the row", field)
    if all(message.role != "user" for message in turns):
        fail("no message is the user's", "put the user's message before the assistant's", field)
    return turns


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
        fail(f"unknown role {item.get('role')!r}", f"use {listed(_ROLES)}", f"{field}.role")
    return Message(role=item["role"], content=encodable(item.get("content"), f"{field}.content"))
