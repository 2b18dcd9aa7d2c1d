"""Tables for a spreadsheet. What somebody wrote is a text there, whatever it begins with, and never a formula."""

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

# A spreadsheet calculates a cell that begins so, which can start programs and send other cells away (CWE-1236).
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def safe_cell(value: Any) -> Any:
    """A value as a cell: numbers as they are, of texts those with an apostrophe in front that would be formulas."""
    if value is None or isinstance(value, int | float):
        return value
    text = str(value)
    return f"'{text}" if text.lstrip(" ").startswith(_FORMULA) else text


class CsvTable:
    """A .csv file (UTF-8, comma, every text quoted) that is written row by row."""

    def __init__(self, path: Path, columns: Iterable[str]) -> None:
        self.columns = tuple(columns)
        self._file = path.open("w", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file, quoting=csv.QUOTE_NONNUMERIC)
        self._writer.writerow(self.columns)

    def write(self, row: Mapping[str, Any]) -> None:
        """A row by its columns' names."""
        self._writer.writerow([safe_cell(row[name]) for name in self.columns])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
