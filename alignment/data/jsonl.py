"""Records as JSON lines, one record a line."""

from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from alignment.workspace import write_text

RecordT = TypeVar("RecordT", bound=BaseModel)


def read_records(path: Path, model: type[RecordT]) -> list[RecordT]:
    """Every record of a file that :func:`write_records` wrote."""
    with path.open(encoding="utf-8") as lines:
        return [model.model_validate_json(line) for line in lines if line.strip()]


def write_records(path: Path, records: Iterable[BaseModel]) -> None:
    """Writes one record a line, all of them or none."""
    write_text(path, "".join(record.model_dump_json() + "\n" for record in records))
