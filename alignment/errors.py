"""What is wrong with a user's input, said so that the user can mend it.

One line per fault: file, row, field, what is wrong, what to do. Everything that reads user input collects faults and
raises one :class:`InputError` with all of them; the command line prints the lines and exits with 2.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import ValidationError
from pydantic_core import ErrorDetails


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
        line = f"{where}: {self.problem}; {self.remedy}" if where else f"{self.problem}; {self.remedy}"
        return " ".join(line.split())


class InputError(Exception):
    """The user's input is wrong. ``str()`` gives one line per fault."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(str(fault) for fault in self.faults))


class StageError(Exception):
    """A stage could not do its work (exit code 1): not the input's fault, or not known to be before the run."""


def errors_of(error: ValidationError) -> list[ErrorDetails]:
    """What pydantic found, less each "too short" that only counts the items which already failed below it."""
    found = error.errors(include_url=False)
    places = [item["loc"] for item in found]

    def echoes(item: ErrorDetails) -> bool:
        at = item["loc"]
        return item["type"] == "too_short" and any(len(loc) > len(at) and loc[: len(at)] == at for loc in places)

    return [item for item in found if not echoes(item)]
