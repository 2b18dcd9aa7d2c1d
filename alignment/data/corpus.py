"""A corpus: documents to read, of rows with a text or of a plain text file."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from alignment.data.columns import text
from alignment.data.jsonl import FORMATS, opened, stream_parsed
from alignment.data.split import split_both_sides
from alignment.digests import content_id
from alignment.errors import Fault, InputError, raise_faults

PLAIN = (".txt", ".txt.gz")


@dataclass(frozen=True, slots=True)
class Corpus:
    """The documents of a file in its order, each once, and how many were left out as exact duplicates."""

    documents: tuple[str, ...]
    duplicates: int

    def split(self, held_out: float) -> tuple[list[str], list[str]]:
        """(to train on, held out), by their digests; neither is empty where two documents differ."""
        return split_both_sides(self.documents, held_out, key=lambda document: document)


def read_corpus(path: Path) -> Corpus:
    """The documents of a file. Raises InputError with every fault of it, by row."""
    corpus, faults = scan_corpus(path)
    raise_faults(faults)
    return corpus


def scan_corpus(path: Path) -> tuple[Corpus, list[Fault]]:
    """The documents of the rows that are right, and the others' faults, in which those of the file itself are too."""
    faults: list[Fault] = []
    first: dict[str, str] = {}
    count = 0
    try:
        for one in stream_documents(path):
            if isinstance(one, Fault):
                faults.append(one)
                continue
            count += 1
            first.setdefault(content_id(one[1]), one[1])
    except InputError as error:
        faults += error.faults
    return Corpus(tuple(first.values()), count - len(first)), faults


def stream_documents(path: Path) -> Iterator[tuple[int, str] | Fault]:
    """The documents of a file with their rows (of plain text: the line where each begins), one after another.

    A row holds ``text``; of a plain text file, an empty line ends a document. Raises InputError for the file as a
    whole.
    """
    if path.name.endswith(PLAIN):
        yield from _paragraphs(path)
        return
    try:
        yield from stream_parsed(path, lambda row: text(row, "text"))
    except InputError as error:
        [fault, *more] = error.faults
        if not more and fault.remedy == f"use {FORMATS}":
            raise InputError([Fault(fault.problem, f"use {FORMATS}, or .txt", file=fault.file)]) from None
        raise


def _paragraphs(path: Path) -> Iterator[tuple[int, str] | Fault]:
    file = str(path)
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "no such file"
        raise InputError([Fault(problem, f"give the path of a {FORMATS} or .txt file", file=file)])
    lines: list[str] = []
    empty = True
    with opened(path) as stream:
        number = 0
        for number, line in enumerate(stream, start=1):
            try:
                words = line.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError:
                yield Fault("the text is not UTF-8", "save the file as UTF-8", file, number)
                continue
            if words.strip():
                lines.append(words)
            elif lines:
                empty = False
                yield number - len(lines), "\n".join(lines)
                lines = []
    if lines:
        empty = False
        yield number - len(lines) + 1, "\n".join(lines)
    if empty:
        raise InputError([Fault("the file is empty", "give at least one document", file=file)])
