"""How the two processes of :mod:`alignment.reward.sandbox` talk: values as JSON, everything else as a number.

It is loaded by path inside the sandbox and imports the standard library alone. Built-in values, and a few of the
library's, travel as copies: the receiver rebuilds them from their parts, so that no method of the sender's class takes
part in a later comparison. Whatever else is sent stays where it is and travels as a number (a *handle*).
"""

import collections
import datetime
import decimal
import fractions
import json
import os
from collections.abc import Callable
from typing import Any

EXACT = 2**53  # larger whole numbers travel as hexadecimal text
DATES: dict[str, Any] = {"date": datetime.date, "time": datetime.time, "datetime": datetime.datetime}


class Ended(Exception):  # noqa: N818  (the other process left)
    """The other process is gone."""


def encoded(value: Any, handle: Callable[[Any], Any], above: tuple[int, ...] = ()) -> Any:
    """``value`` as JSON; ``handle`` gives the JSON of what cannot travel as a copy, such as a loop in a container."""
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        number = int.__index__(value)
        return number if abs(number) < EXACT else {"i": hex(number)}
    if isinstance(value, float):
        return {"f": float.hex(value)}
    if isinstance(value, str):
        return str.__str__(str.__add__(value, ""))
    if isinstance(value, bytes | bytearray):
        return {"b" if isinstance(value, bytes) else "a": bytes(memoryview(value)).hex()}
    if id(value) in above:
        return handle(value)
    inner = (*above, id(value))

    def each(items: Any) -> list[Any]:
        return [encoded(item, handle, inner) for item in items]

    if isinstance(value, list):
        return {"l": each(list.__iter__(value))}
    if isinstance(value, tuple):
        fields = getattr(kind, "_fields", None)
        if kind is not tuple and isinstance(fields, tuple):
            return {"n": [kind.__name__, list(fields), each(tuple.__iter__(value))]}
        return {"t": each(tuple.__iter__(value))}
    if isinstance(value, set | frozenset):
        base: Any = set if isinstance(value, set) else frozenset
        return {"s" if base is set else "z": each(base.__iter__(value))}
    if isinstance(value, dict):
        tag = "o" if isinstance(value, collections.OrderedDict) else "d"
        return {tag: [each(pair) for pair in dict.items(value)]}
    return _of_the_library(value, kind, each, handle)


def _of_the_library(value: Any, kind: type, each: Callable[[Any], list[Any]], handle: Callable[[Any], Any]) -> Any:
    if kind is complex:
        return {"c": [value.real.hex(), value.imag.hex()]}
    if kind is range:
        return {"r": [value.start, value.stop, value.step]}
    if kind is collections.deque:
        return {"q": [each(value), value.maxlen]}
    if kind is decimal.Decimal:
        return {"D": str(value)}
    if kind is fractions.Fraction:
        return {"F": [hex(value.numerator), hex(value.denominator)]}
    if kind is datetime.timedelta:
        return {"T": [value.days, value.seconds, value.microseconds]}
    if DATES.get(kind.__name__) is kind and getattr(value, "tzinfo", None) is None:
        return {"dt": [kind.__name__, value.isoformat()]}
    return handle(value)


def decoded(value: Any, handle: Callable[[dict[str, Any]], Any]) -> Any:
    """The value that :func:`encoded` wrote; ``handle`` gives what a handle's JSON stands for."""
    if not isinstance(value, dict):
        return value

    def each(items: Any) -> list[Any]:
        return [decoded(item, handle) for item in items]

    (tag, parts), *more = value.items()
    if more:
        return handle(value)
    makers: dict[str, Callable[[Any], Any]] = {
        "i": lambda text: int(text, 16), "f": float.fromhex, "b": bytes.fromhex, "a": bytearray.fromhex,
        "l": each, "t": lambda items: tuple(each(items)), "s": lambda items: set(each(items)),
        "z": lambda items: frozenset(each(items)),
        "d": lambda pairs: {decoded(k, handle): decoded(v, handle) for k, v in pairs},
        "o": lambda pairs: collections.OrderedDict((decoded(k, handle), decoded(v, handle)) for k, v in pairs),
        "n": lambda told: collections.namedtuple(told[0], told[1])(*each(told[2])),
        "c": lambda told: complex(*map(float.fromhex, told)), "r": lambda told: range(*told),
        "q": lambda told: collections.deque(each(told[0]), told[1]), "D": decimal.Decimal,
        "F": lambda told: fractions.Fraction(int(told[0], 16), int(told[1], 16)),
        "T": lambda told: datetime.timedelta(*told), "dt": lambda told: DATES[told[0]].fromisoformat(told[1]),
    }  # fmt: skip
    return makers[tag](parts)


class Wire:
    """Messages to and from the other process, one JSON object a line, over two pipes."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reader = os.fdopen(reading, "rb")
        self._writing = writing

    def send(self, message: dict[str, Any]) -> None:
        """Raises Ended where nobody reads any more."""
        data = json.dumps(message).encode() + b"\n"
        try:
            while data:
                data = data[os.write(self._writing, data) :]
        except OSError as error:
            raise Ended from error

    def receive(self) -> dict[str, Any]:
        """Raises Ended where the other process is gone or writes no message."""
        line = self._reader.readline()
        try:
            message = json.loads(line)
        except ValueError as error:
            raise Ended from error
        if not isinstance(message, dict):
            raise Ended
        return message


def base_of(error: type[BaseException]) -> str:
    """The name of the built-in exception that a class of exceptions is, or is made of."""
    return next(kind.__name__ for kind in error.__mro__ if kind.__module__ == "builtins")
