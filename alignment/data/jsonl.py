"""Rows of a user's file, and records written as JSON lines.

What is wrong in a row is collected, so that one look at the faults mends the file: a run must know of every fault
before it starts. A .json list is read whole; of the other formats no more is held than a few rows.
"""

import codecs
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from pydantic import ValidationError

from alignment.durable_files import write_text
from alignment.errors import Fault, InputError, errors_of, raise_faults
from alignment.records import Record

FORMATS = ".jsonl, .jsonl.gz, .json, .json.gz or .parquet"

PARQUET_ROWS = 1_000  # that are read at a time
POINTER_BYTES = 64  # from a file's beginning, by which :func:`pointer_kind` tells
_POINTERS = {b"version https://git-lfs": "Git LFS", b"/annex/objects/": "git-annex"}

Row = dict[str, Any]
R = TypeVar("R", bound=Record)
T = TypeVar("T")


def read_rows(path: Path) -> list[tuple[int, Row]]:
    """The rows of a file with their numbers (lines of a .jsonl, positions from 1 in a .json list or .parquet table).

    Raises:
        InputError: the file is missing, empty, unreadable or holds rows that are not objects.
    """
    rows, faults = scan_rows(path)
    raise_faults(faults)
    return rows


def scan_rows(path: Path) -> tuple[list[tuple[int, Row]], list[Fault]]:
    """The rows that can be read, and a fault for each that cannot. Raises InputError for the file as a whole."""
    rows: list[tuple[int, Row]] = []
    faults: list[Fault] = []
    for one in stream_rows(path):
        if isinstance(one, Fault):
            faults.append(one)
        else:
            rows.append(one)
    return rows, faults


def stream_rows(path: Path) -> Iterator[tuple[int, Row] | Fault]:
    """The rows of a file in their order, one after another, and in the place of one that cannot be read its faults.

    Raises InputError for the file as a whole, at its end too: where it turns out to be cut off, or empty.
    """
    file = str(path)
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "no such file"
        raise InputError([Fault(problem, f"give the path of a {FORMATS} file", file=file)])
    suffixes = path.suffixes[-2:] if path.suffix == ".gz" else path.suffixes[-1:]
    found: Iterable[tuple[int, Any] | Fault]
    if suffixes[:1] == [".parquet"] and len(suffixes) == 1:
        found = _parquet_rows(path)
    elif suffixes[:1] == [".jsonl"]:
        found = _json_lines(path)
    elif suffixes[:1] == [".json"]:
        found = _json_list(_text(_bytes(path), file), file)
    else:
        raise InputError([Fault("the file's format is not known by its name", f"use {FORMATS}", file=file)])
    empty = True
    for one in found:
        empty = False
        if isinstance(one, Fault) or isinstance(one[1], dict):
            yield one
        else:
            problem = f"the row is {_json_name(one[1])}, not an object"
            yield Fault(problem, 'write one {"column": value, …} a row', file, one[0])
    if empty:
        raise InputError([Fault("the file is empty", "give at least one row", file=file)])


def parse_rows(path: Path, parse: Callable[[Row], T]) -> list[tuple[int, T]]:
    """``parse`` of every row with its number. ``parse`` raises InputError with faults that need no file or row.

    Raises:
        InputError: with the faults of all rows, the first twenty in full and the rest as a count.
    """
    parsed, faults = scan_parsed(path, parse)
    raise_faults(faults)
    return parsed


def stream_parsed(path: Path, parse: Callable[[Row], T]) -> Iterator[tuple[int, T] | Fault]:
    """``parse`` of the rows one after another, and in the place of one that it does not take its faults.

    Raises InputError like :func:`stream_rows`. ``parse`` is as in :func:`parse_rows`.
    """
    for one in stream_rows(path):
        if isinstance(one, Fault):
            yield one
            continue
        number, row = one
        try:
            parsed = parse(row)
        except InputError as error:
            yield from (replace(fault, file=str(path), row=number) for fault in error.faults)
        else:
            yield number, parsed


def scan_parsed(path: Path, parse: Callable[[Row], T]) -> tuple[list[tuple[int, T]], list[Fault]]:
    """``parse`` of every row that it takes, with the row's number, and the faults of the others in their order.

    A fault of the file as a whole leaves no rows. ``parse`` is as in :func:`parse_rows`.
    """
    parsed: list[tuple[int, T]] = []
    faults: list[Fault] = []
    try:
        for one in stream_parsed(path, parse):
            if isinstance(one, Fault):
                faults.append(one)
            else:
                parsed.append(one)
    except InputError as error:
        return [], list(error.faults)
    return parsed, sorted(faults, key=lambda fault: fault.row or 0)


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


def pointer_kind(start: bytes) -> str | None:
    """Whose pointer a file is by its first bytes: what stands in the place of a large file until it is fetched."""
    return next((name for text, name in _POINTERS.items() if start.startswith(text)), None)


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """A file's bytes, decompressed, behind the mark that some editors put first. Raises InputError, while it is read
    too, where they cannot be."""
    file = str(path)
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
            start = stream.read(POINTER_BYTES)
            if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise InputError([Fault("the text is UTF-16, not UTF-8", "save the file as UTF-8", file, 1)])
            pointer = pointer_kind(start)
            if pointer is not None:
                raise InputError([Fault(f"a {pointer} pointer, not the file itself", "fetch the file", file=file)])
            stream.seek(len(codecs.BOM_UTF8) if start.startswith(codecs.BOM_UTF8) else 0)
            yield cast("IO[bytes]", stream)
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise InputError([Fault("not a whole gzip file", "compress or copy it again", file=file)]) from None
    except OSError as error:
        raise InputError([Fault(f"cannot be read: {error.strerror}", "check its permissions", file=file)]) from None


def _bytes(path: Path) -> bytes:
    with opened(path) as stream:
        return stream.read()


def _text(data: bytes, file: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError([_not_utf8(file, data[: error.start].count(b"\n") + 1)]) from None


def _not_utf8(file: str, row: int) -> Fault:
    return Fault("the text is not UTF-8", "save the file as UTF-8", file, row)


def _json_lines(path: Path) -> Iterator[tuple[int, Any] | Fault]:
    file = str(path)
    with opened(path) as stream:
        for number, line in enumerate(stream, start=1):  # not splitlines(): U+2028 may stand inside a string
            if not line.strip():
                continue
            try:
                yield number, _loads(line.removesuffix(b"\n").decode("utf-8"))
            except UnicodeDecodeError:
                yield _not_utf8(file, number)
            except InputError as error:
                yield from (replace(fault, file=file, row=number) for fault in error.faults)
            except (ValueError, RecursionError) as error:
                yield Fault(f"not JSON ({_reason(error)})", "write one JSON object a line", file, number)


def _json_list(text: str, file: str) -> list[tuple[int, Any]]:
    if not text.strip():
        return []
    try:
        rows = _loads(text)
    except InputError as error:
        raise InputError([replace(fault, file=file) for fault in error.faults]) from None
    except (ValueError, RecursionError) as error:
        row = error.lineno if isinstance(error, json.JSONDecodeError) else None
        remedy = "write one list of objects; name a file with one object a line .jsonl"
        raise InputError([Fault(f"not JSON ({_reason(error)})", remedy, file, row)]) from None
    if not isinstance(rows, list):
        problem = f"the file holds {_json_name(rows)}, not a list"
        raise InputError([Fault(problem, "write one list of objects", file=file)])
    return list(enumerate(rows, start=1))


def _loads(text: str) -> Any:
    """JSON in which no object has a key twice: which of the two values was meant cannot be known.

    Raises InputError for such a key, ValueError or RecursionError for text that is no JSON.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            names = [name for name, _value in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError([Fault("the key stands twice", "keep one of them", field=twice)])
        return made

    return json.loads(text, object_pairs_hook=unique)


def _parquet_rows(path: Path) -> Iterator[tuple[int, Any] | Fault]:
    import pyarrow  # not needed where the data is JSON
    import pyarrow.parquet as pq

    if not path.stat().st_size:
        return
    with path.open("rb") as start:
        pointer = pointer_kind(start.read(POINTER_BYTES))
    if pointer is not None:
        raise InputError([Fault(f"a {pointer} pointer, not the file itself", "fetch the file", file=str(path))])
    before = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=PARQUET_ROWS):
                table = pyarrow.Table.from_batches([batch])
                yield from _table_rows(table, str(path), before)
                before += table.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0][:120]
        raise InputError([Fault(f"not a whole Parquet file ({reason})", "write it again", file=str(path))]) from None


def _table_rows(table: Any, file: str, before: int) -> Iterator[tuple[int, Any] | Fault]:
    """The rows of a part of a table that has ``before`` rows in front of it."""
    from pyarrow import ArrowException

    try:
        yield from enumerate(table.to_pylist(), start=before + 1)
    except ArrowException:
        raise
    except (ValueError, OverflowError):  # a value that Python cannot hold: the other rows are read without it
        yield from _parquet_row_by_row(table, file, before)


def _parquet_row_by_row(table: Any, file: str, before: int) -> Iterator[tuple[int, Any] | Fault]:
    """The rows of a table that Python can hold, and a fault for every value that it cannot."""
    for index in range(table.num_rows):
        row: Row = {}
        faulty, number = False, before + index + 1
        for place, name in enumerate(table.column_names):
            try:
                if name in row:
                    raise ValueError("the column stands twice")
                row[name] = table.column(place)[index].as_py()
            except UnicodeDecodeError:
                faulty = True
                yield Fault("the text is not UTF-8", "write it again as UTF-8", file, number, name)
            except (ValueError, OverflowError) as error:
                faulty, reason = True, str(error).splitlines()[0][:120]
                yield Fault(f"a value that cannot be read ({reason})", "write text", file, number, name)
        if not faulty:
            yield number, row


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else "a number with too many digits"


def _json_name(value: object) -> str:
    names = {str: "text", list: "a list", dict: "an object", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
