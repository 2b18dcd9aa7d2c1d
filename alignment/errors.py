"""What is wrong with a user's input, said so that the user can mend it.

One line per fault: file, row, field, what is wrong, what to do. Everything that reads user input collects faults and
raises one :class:`InputError` with all of them; the command line prints the lines and exits with 2.
"""

import difflib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

T = TypeVar("T")
D = TypeVar("D")
MAX_FAULTS = 20  # of one file; the rest are counted
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with the input.

    ``row`` counts from 1, as an editor does; ``field`` is dotted for nested settings (``stages.dpo.beta``).
    """

    problem: str
    remedy: str
    file: str | None = None
    row: int | None = None
    field: str | None = None

    def __str__(self) -> str:
        where = ":".join(str(part) for part in (self.file, self.row, self.field) if part is not None)
        line = " ".join(f"{self.problem}; {self.remedy}".split())
        return f"{'␤'.join(where.splitlines())}: {line}" if where else line  # a path stands as it is, on one line


class InputError(Exception):
    """The user's input is wrong. ``str()`` gives one line per fault."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(str(fault) for fault in self.faults))


def raise_faults(faults: Sequence[Fault]) -> None:
    """Raises InputError where there are faults: the first twenty, then how many more."""
    if faults:
        raise InputError(shortened(faults))


def shortened(faults: Sequence[Fault]) -> list[Fault]:
    """The first twenty faults of one file, and one that counts the rest."""
    if len(faults) <= MAX_FAULTS:
        return list(faults)
    rest = len(faults) - MAX_FAULTS
    more = Fault(f"{rest} more faults like these", "mend these first, then check again", file=faults[0].file)
    return [*faults[:MAX_FAULTS], more]


class FaultCollector:
    """Goes on after a fault, so that one look shows all of them."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []

    def attempt(self, read: Callable[[], T], default: D) -> T | D:
        """What ``read`` returns; where it raises InputError its faults are collected and ``default`` is returned."""
        try:
            return read()
        except InputError as error:
            self.faults.extend(error.faults)
            return default

    def raise_all(self) -> None:
        """Raises InputError with everything collected, where there is something."""
        if self.faults:
            raise InputError(self.faults)


class StageError(Exception):
    """A stage could not do its work (exit code 1): not the input's fault, or not known to be before the run."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like ``name``, where one is like it."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)), None)


def suggestion(name: str, known: Iterable[str]) -> str:
    """A remedy for an unknown name: the nearest known one, else all of them."""
    names = list(known)
    near = nearest(name, names)
    return f"did you mean {near}?" if near else f"known here: {', '.join(names) or 'none'}"


class NotFiniteError(StageError):
    """A model's weights, logits or scores are NaN or infinite: nothing that follows from them means anything."""


@contextmanager
def keeping(error: BaseException, doing: str) -> Iterator[None]:
    """For what is still done after ``error``: where that fails too, it is logged and noted, and never told instead.

    What ends a process (Ctrl-C, SystemExit) ends it in here as well.
    """
    try:
        yield
    except Exception as second:
        _log.warning("%s failed as well: %s: %s", doing, type(second).__name__, second)
        error.add_note(f"{doing} failed as well: {type(second).__name__}: {second}")


def errors_of(error: ValidationError) -> list[ErrorDetails]:
    """What pydantic found, less each "too short" that only counts the items which already failed below it."""
    found = error.errors(include_url=False)
    places = [item["loc"] for item in found]

    def echoes(item: ErrorDetails) -> bool:
        at = item["loc"]
        return item["type"] == "too_short" and any(len(loc) > len(at) and loc[: len(at)] == at for loc in places)

    return [item for item in found if not echoes(item)]
