"""Rows of a user's file, and records written as JSON lines.

A file is read whole: preference data is text, and a run must know of every fault before it starts. What is wrong in a
row is collected, so that one look at the faults mends the file.
"""

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from alignment.errors import Fault, InputError, errors_of
from alignment.records import Record
from alignment.workspace import write_text

MAX_FAULTS = 20  # of one file; the rest are counted
FORMATS = ".jsonl, .jsonl.gz, .json, .json.gz or .parquet"

Row = dict[str, Any]
R = TypeVar("R", bound=Record)
T = TypeVar("T")


def read_rows(path: Path) -> list[tuple[int, Row]]:
    """The rows of a file with their numbers (lines of a .jsonl, positions from 1 in a .json list or .parquet table).

    Raises:
        InputError: the file is missing, empty, unreadable or holds rows that are not objects.
    """
    rows, faults = _rows_and_faults(path)
    raise_faults(faults)
    return rows


def _rows_and_faults(path: Path) -> tuple[list[tuple[int, Row]], list[Fault]]:
    """The rows that can be read, and a fault for each that cannot. Raises InputError for the file as a whole."""
    file = str(path)
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "no such file"
        raise InputError([Fault(problem, f"give the path of a {FORMATS} file", file=file)])
    suffixes = path.suffixes[-2:] if path.suffix == ".gz" else path.suffixes[-1:]
    faults: list[Fault] = []
    if suffixes[:1] == [".parquet"] and len(suffixes) == 1:
        rows = _parquet_rows(path)
    elif suffixes[:1] == [".jsonl"]:
        rows, faults = _json_lines(_text(path), file)
    elif suffixes[:1] == [".json"]:
        rows = _json_list(_text(path), file)
    else:
        raise InputError([Fault("the file's format is not known by its name", f"use {FORMATS}", file=file)])
    if not rows and not faults:
        raise InputError([Fault("the file is empty", "give at least one row", file=file)])
    faults += [
        Fault(f"the row is {_json_name(row)}, not an object", 'write one {"column": value, …} a row', file, number)
        for number, row in rows
        if not isinstance(row, dict)
    ]
    return [(number, row) for number, row in rows if isinstance(row, dict)], faults


def parse_rows(path: Path, parse: Callable[[Row], T]) -> list[tuple[int, T]]:
    """``parse`` of every row with its number. ``parse`` raises InputError with faults that need no file or row.

    Raises:
        InputError: with the faults of all rows, the first twenty in full and the rest as a count.
    """
    parsed: list[tuple[int, T]] = []
    rows, faults = _rows_and_faults(path)
    for number, row in rows:
        try:
            parsed.append((number, parse(row)))
        except InputError as error:
            faults += [replace(fault, file=str(path), row=number) for fault in error.faults]
    raise_faults(sorted(faults, key=lambda fault: fault.row or 0))
    return parsed


def read_records(path: Path, model: type[R]) -> list[R]:
    """Records that :func:`write_records` wrote (or a user, by the same schema).

    Raises:
        InputError: naming file, row and field of everything that does not fit the schema.
    """

    def parse(row: Row) -> R:
        try:
            return model.model_validate(row)
        except ValidationError as error:
            remedy = f"write it as the schema of {model.__name__} says"
            faults = [
                Fault(item["msg"], remedy, field=".".join(str(part) for part in item["loc"]) or None)
                for item in errors_of(error)
            ]
            raise InputError(faults) from None

    return [record for _number, record in parse_rows(path, parse)]


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Writes one JSON object a line, UTF-8, all of them or nothing; the same records give the same bytes."""
    write_text(path, "".join(record.model_dump_json() + "\n" for record in records))


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


def _text(path: Path) -> str:
    file = str(path)
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise InputError([Fault("not a whole gzip file", "compress or copy it again", file=file)]) from None
    except OSError as error:
        raise InputError([Fault(f"cannot be read: {error.strerror}", "check its permissions", file=file)]) from None
    try:
        return data.decode("utf-8-sig")  # with or without the mark that some editors put first
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError([Fault("the text is not UTF-8", "save the file as UTF-8", file, line)]) from None


def _json_lines(text: str, file: str) -> tuple[list[tuple[int, Any]], list[Fault]]:
    rows: list[tuple[int, Any]] = []
    faults: list[Fault] = []
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines(): U+2028 may stand inside a JSON string
        if not line.strip():
            continue
        try:
            rows.append((number, json.loads(line)))
        except (ValueError, RecursionError) as error:
            faults.append(Fault(f"not JSON ({_reason(error)})", "write one JSON object a line", file, number))
    return rows, faults


def _json_list(text: str, file: str) -> list[tuple[int, Any]]:
    if not text.strip():
        return []
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        row = error.lineno if isinstance(error, json.JSONDecodeError) else None
        remedy = "write one list of objects; name a file with one object a line .jsonl"
        raise InputError([Fault(f"not JSON ({_reason(error)})", remedy, file, row)]) from None
    if not isinstance(rows, list):
        problem = f"the file holds {_json_name(rows)}, not a list"
        raise InputError([Fault(problem, "write one list of objects", file=file)])
    return list(enumerate(rows, start=1))


def _parquet_rows(path: Path) -> list[tuple[int, Any]]:
    import pyarrow  # not needed where the data is JSON
    import pyarrow.parquet as pq

    if not path.stat().st_size:
        return []
    try:
        rows = pq.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0][:120]
        raise InputError([Fault(f"not a whole Parquet file ({reason})", "write it again", file=str(path))]) from None
    return list(enumerate(rows, start=1))


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else "a number with too many digits"


def _json_name(value: object) -> str:
    names = {str: "text", list: "a list", dict: "an object", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
