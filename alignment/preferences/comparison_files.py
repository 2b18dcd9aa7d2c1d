"""Comparisons for raters, out of any file that holds some, row by row.

Besides what :mod:`alignment.preferences.preference_files` reads of a row: HH-RLHF dialogues (``chosen`` and
``rejected`` as one text each), Open-Assistant message trees (the replies to one message, in one comparison), CSV, and
the folder of an artifact that holds prompts and responses. What published corpora are known to hold and nobody will
mend is left out and counted; what a row's author can mend is a fault.
"""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from alignment.data import hh_rlhf, oasst
from alignment.data.columns import listed
from alignment.data.jsonl import FORMATS, Row, opened, read_records, stream_rows
from alignment.data.pairing import Skip
from alignment.errors import Fault, InputError
from alignment.preferences.comparisons import make_comparisons
from alignment.preferences.preference_files import MOST_ANSWERS, KnownComparison, compared, known_pair, parse_row
from alignment.records import Prompt, Response

IMPORTED = f"{FORMATS}, .csv, .csv.gz, or the folder of an artifact with responses"
MAX_CELL = 10_000_000  # characters
_TEXTS = ("prompt", "chosen", "rejected", "response")
csv.field_size_limit(MAX_CELL)


class LeftOut(NamedTuple):
    """Something in a row that makes no comparison, and why."""

    row: int
    why: str


def stream_comparisons(path: Path, fewest: int = 2) -> Iterator[tuple[int, KnownComparison] | Fault | LeftOut]:
    """The comparisons of every row with the row's number, repeated ones included; the faults of the other rows; and
    what is left out.

    ``fewest`` answers make a comparison. Where it is 1, a row may have one answer alone, to be voted up or down: a
    record of one response, or ``response`` (a text or an object) instead of ``responses``. No more than a few rows are
    held, but of a .json list and of an artifact. Raises InputError for the file as a whole, at its end too.
    """
    if path.is_dir():
        yield from _of_artifact(path)
        return
    for one in _csv_rows(path) if ".csv" in path.suffixes[-2:] else stream_rows(path):
        if isinstance(one, Fault):
            yield one
            continue
        number, row = one
        try:
            made = _of_row(row, fewest)
        except InputError as error:
            yield from (replace(fault, file=str(path), row=number) for fault in error.faults)
        else:
            yield from (LeftOut(number, each) if isinstance(each, str) else (number, each) for each in made)


def _of_row(row: Row, fewest: int) -> list[KnownComparison | str]:
    if isinstance(row.get("prompt"), dict) and "responses" not in row:
        return _of_tree(row)
    texts = "prompt" not in row and "messages" not in row
    if texts and hh_rlhf.is_dialogue(row.get("chosen")) and hh_rlhf.is_dialogue(row.get("rejected")):
        [pair] = hh_rlhf.parse(row)
        return [str(pair) if isinstance(pair, Skip) else known_pair(pair, row)]
    return [parse_row(row, fewest)]


def _of_tree(row: Row) -> list[KnownComparison | str]:
    """Each message of the prompter that has two replies or more. Where all have a rank, that is the known order."""
    made: list[KnownComparison | str] = []
    for prompt, replies, skipped in oasst.questions(row):
        made += [str(why) for why in skipped]
        ranks: dict[str, int | None] = {}
        for text, rank in replies:
            if text in ranks or not text:
                made.append(str(Skip.IDENTICAL if text else Skip.EMPTY))
            else:
                ranks[text] = rank
        if not all(message.content for message in prompt):
            made.append(str(Skip.EMPTY))
            continue
        made += [f"a reply beyond the first {MOST_ANSWERS}"] * (len(ranks) - MOST_ANSWERS)
        answers = list(ranks)[:MOST_ANSWERS]
        if len(answers) < 2:
            continue
        comparison = compared(prompt, answers, {})
        ids = {response.text: response.id for response in comparison.responses}
        places = sorted({ranks[text] for text in answers}, key=lambda rank: -1 if rank is None else rank)
        order = tuple(tuple(ids[text] for text in answers if ranks[text] == place) for place in places)
        made.append(KnownComparison(comparison, None if None in places else order))
    return made


def _of_artifact(folder: Path) -> Iterator[tuple[int, KnownComparison]]:
    """A pair of answers to each prompt of an artifact of sampled responses."""
    files = folder / "prompts.jsonl", folder / "responses.jsonl"
    if not all(file.is_file() for file in files):
        problem = "the folder holds no prompts.jsonl and responses.jsonl"
        raise InputError([Fault(problem, "name a file, or the artifact of a stage that samples", file=str(folder))])
    responses = [one for one in read_records(files[1], Response) if one.text.strip()]
    try:
        made = make_comparisons(read_records(files[0], Prompt), responses, per_prompt=1, seed=0)
    except ValueError as error:
        raise InputError([Fault(str(error), "name the artifact as it was made", file=str(files[1]))]) from None
    if not made:
        remedy = "name the artifact of a stage that samples several answers to each prompt"
        raise InputError([Fault("no prompt has two different answers", remedy, file=str(folder))])
    yield from ((at, KnownComparison(one, None)) for at, one in enumerate(made, start=1))


def _csv_rows(path: Path) -> Iterator[tuple[int, Row] | Fault]:
    """The rows of a table of texts with their lines, columns as its first line names them.

    Commas, semicolons or tabs may stand between the cells, whichever the first line has most of. Messages, and
    ``responses``, are JSON; the answers may also stand in columns of their own, ``response_1``, ``response_2`` … An
    empty cell is missing, but for one that has to say something.
    """
    file = str(path)
    if not path.is_file():
        raise InputError([Fault("no such file", f"give the path of a {IMPORTED}", file=file)])
    with opened(path) as stream:
        lines = io.TextIOWrapper(stream, "utf-8", newline="")
        line = 1
        try:
            start = lines.readline()
            reader = csv.reader(_all(start, lines), delimiter=max(",;\t", key=start.count), strict=True)
            header = _header(next(reader, []), file)
            empty = True
            line = reader.line_num + 1
            for cells in reader:
                if cells:
                    empty = False
                    yield _csv_row(header, cells, file, line)
                line = reader.line_num + 1
        except UnicodeDecodeError:
            raise InputError([Fault("the text is not UTF-8", "save the file as UTF-8", file, line)]) from None
        except csv.Error as error:
            problem = f"not CSV ({error})"
            raise InputError([Fault(problem, "put quotation marks around such a cell", file, line)]) from None
    if empty:
        raise InputError([Fault("the file is empty", "give at least one row below the names", file=file)])


def _all(start: str, lines: Iterator[str]) -> Iterator[str]:
    yield start
    yield from lines


def _header(names: list[str], file: str) -> list[str]:
    header = [name.strip() for name in names]
    if not any(header):
        raise InputError([Fault("the file is empty", "name the columns in its first line", file=file)])
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise InputError([Fault(f"the column {twice[0]!r} stands twice", "keep one of them", file, 1)])
    return header


def _csv_row(header: list[str], cells: list[str], file: str, line: int) -> tuple[int, Row] | Fault:
    if len(cells) != len(header):
        problem = f"{len(cells)} cells, and the first line names {len(header)} columns"
        return Fault(problem, f"write {listed(header)}", file, line)
    row: Row = {}
    answers: list[str] = []
    for name, cell in zip(header, cells, strict=True):
        if name.startswith("response_"):
            answers += [cell] if cell.strip() else []
        elif cell.strip() or name in _TEXTS:
            row[name] = _cell(name, cell)
    if answers:
        row["responses"] = answers
    return line, row


def _cell(name: str, cell: str) -> Any:
    """What a cell says: text, messages, a list of answers, a number, or yes and no."""
    if name == "responses" or (name != "response" and cell.lstrip().startswith("[{")):
        try:
            value = json.loads(cell)
        except ValueError:
            return cell
        are_messages = isinstance(value, list) and all(isinstance(one, dict) and "role" in one for one in value)
        return value if name == "responses" or are_messages else cell
    if name.endswith("finished"):
        return {"true": True, "false": False}.get(cell.strip().lower(), cell)
    if name == "margin":
        try:
            return float(cell)
        except ValueError:
            return cell
    return cell
