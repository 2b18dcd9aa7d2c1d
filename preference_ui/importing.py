"""Comparisons from files into the store: what ``rlhf votes import`` and the review desk do.

A file is read once and checked whole, with no more than a few rows in hand; what is new is laid down beside it, and
then goes into the store batch by batch, so that raters go on meanwhile. What an interruption leaves out comes in when
the file is imported again.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import IO, Any

from pydantic import Field

from alignment.errors import Fault, InputError, raise_faults
from alignment.preferences.comparison_files import LeftOut, stream_comparisons
from alignment.preferences.preference_files import KnownComparison
from alignment.records import Record
from preference_ui.labelling.queue import (
    BATCH,
    TAKEN,
    Gold,
    comparison_faults,
    count_anew,
    gold_row,
    insert_batch,
    known_rows,
    same_question,
    turn_to_gold,
    work_row,
)
from preference_ui.store.queue_settings import DEFAULT, current_queue, require_queue_name
from preference_ui.store.store import Store
from preference_ui.store.tallies import queue_tallies_now

Progress = Callable[[str, int], None]
VOTES_WANTED = 3  # of a comparison, where nobody says how many
MOST_FAULTS = 2_000  # that are kept of a file; more are counted
FOLD_EVERY = 5 * BATCH  # rows
SHOWN = 10  # rows of a preview


class Imported(Record):
    """What became of a file's rows: each ``new``, ``repeated`` (an earlier row) or ``known`` (queued before).

    Of the known ones ``turned`` became gold, as was asked, and ``kept`` did not: raters have had them, and their votes
    are real work. ``left_out`` counts what makes no comparison, by the reason.
    """

    rows: int
    new: int
    repeated: int
    known: int
    turned: int = 0
    kept: int = 0
    left_out: Mapping[str, int] = Field(default_factory=dict)


class PreviewRow(Record):
    """A row as it will be shown to raters: its number, the last message, and the answers."""

    row: int
    question: str
    answers: tuple[str, ...]


class CheckedFile(Record):
    """What a file holds, before anything of it is stored. ``faults`` are the first of ``faulty``."""

    rows: int
    new: int
    repeated: int
    known: int
    left_out: Mapping[str, int]
    preview: tuple[PreviewRow, ...]
    faulty: int


@dataclass(frozen=True, slots=True)
class ImportRequest:
    """Which file, into which queue, and how. ``votes_wanted`` None: as the queue says, or :data:`VOTES_WANTED`."""

    path: Path
    queue: str = DEFAULT
    votes_wanted: int | None = None
    gold: bool = False
    actor: str = "cli"
    shown_as: str | None = None  # the file's name in faults, where it is not the path


def import_comparisons(
    store: Store, path: Path, *, votes_wanted: int | None = None, queue: str = DEFAULT, gold: bool = False,
    actor: str = "cli", progress: Progress | None = None,
) -> Imported:  # fmt: skip
    """Queues a file's comparisons (:func:`~alignment.preferences.comparison_files.stream_comparisons`).

    A row with one ``response`` is voted up or down. ``gold`` stores rows with a known order as gold instead, mixed in
    silently, and turns those into gold that were queued before and that nobody has had. ``progress`` is told what is
    done ("checked" or "queued") and of how many rows. Raises InputError with the faults of all rows; then nothing is
    queued.
    """
    asked = ImportRequest(path, queue, votes_wanted, gold, actor)
    with FileImport(store, asked, progress) as one:
        one.check()
        one.raise_faults()
        return one.enqueue()


class FileImport:
    """A file on its way into the store. :meth:`check` comes first; :meth:`enqueue` where there are no faults."""

    def __init__(self, store: Store, asked: ImportRequest, progress: Progress | None = None) -> None:
        """Raises InputError for a queue that cannot be, or for no votes wanted."""
        self.store, self.asked = store, asked
        self.wanted = _votes_wanted(store, asked.queue, asked.votes_wanted)
        self.faults: list[Fault] = []
        self._tell = progress or (lambda _what, _rows: None)
        self._spool: IO[str] = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 (closed by close)
        self._file = asked.shown_as or str(asked.path)
        self._rows = self._faulty = self._known = self._kept = 0
        self._seen: set[str] = set()
        self._left_out: Counter[str] = Counter()
        self._preview: list[PreviewRow] = []
        self._batch: list[tuple[int, dict[str, Any]]] = []

    def __enter__(self) -> "FileImport":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Forgets what was read."""
        self._spool.close()

    def check(self) -> CheckedFile:
        """Reads the whole file. Faults are in ``faults``; nothing is stored."""
        try:
            for at, one in enumerate(stream_comparisons(self.asked.path, fewest=2 if self.asked.gold else 1), start=1):
                self._take(one)
                if at % BATCH == 0:
                    self._tell("checked", at)
        except InputError as error:
            self._note(*(replace(fault, file=self._file) for fault in error.faults))
        self._settle()
        self.faults.sort(key=lambda fault: fault.row or 0)
        return CheckedFile(
            rows=self._rows, new=len(self._seen) - self._known, repeated=self._rows - len(self._seen),
            known=self._known, left_out=dict(self._left_out), preview=tuple(self._preview), faulty=self._faulty,
        )  # fmt: skip

    def raise_faults(self) -> None:
        """Raises InputError with the first faults and how many more there are."""
        raise_faults([*self.faults, *self.faults[-1:] * (self._faulty - len(self.faults))])

    def enqueue(self) -> Imported:
        """Stores what was checked. Raises InputError where an id was taken by another question meanwhile."""
        self._spool.seek(0)
        new = done = turned = 0
        for batch in self._batches():
            known = [row for row in batch if row.pop("turn")]
            fresh = [row for row in batch if row not in known]
            new += insert_batch(self.store, fresh, self.asked.actor)
            turned += turn_to_gold(self.store, known, self.asked.actor) if known else 0
            done += len(batch)
            if done % FOLD_EVERY < BATCH:
                queue_tallies_now(self.store)  # folds what the rows left in the ledger, while that takes no time
            self._tell("queued", done)
        if new:
            count_anew(self.store)
        known_gold = len(self._seen) - new
        return Imported(
            rows=self._rows, new=new, repeated=self._rows - len(self._seen), known=known_gold, turned=turned,
            kept=self._kept - turned, left_out=dict(self._left_out),
        )  # fmt: skip

    def _take(self, one: tuple[int, KnownComparison] | Fault | LeftOut) -> None:
        if isinstance(one, Fault):
            self._note(replace(one, file=self._file))
            return
        if isinstance(one, LeftOut):
            self._left_out[one.why] += 1
            return
        number, known = one
        self._rows += 1
        faults = list(_faults(known, self._file, number, gold=self.asked.gold))
        self._note(*faults)
        if faults or known.comparison.id in self._seen:
            return
        self._seen.add(known.comparison.id)
        if len(self._preview) < SHOWN:
            question = known.comparison.prompt.messages[-1].content
            answers = tuple(response.text for response in known.comparison.responses)
            self._preview.append(PreviewRow(row=number, question=question, answers=answers))
        self._batch.append((number, self._row(known)))
        if len(self._batch) >= BATCH:
            self._settle()

    def _note(self, *faults: Fault) -> None:
        self._faulty += len(faults)
        self.faults += faults[: max(0, MOST_FAULTS - len(self.faults))]

    def _settle(self) -> None:
        """Compares what has gathered with the store, and lays down what is new, or becomes gold."""
        with self.store.read() as connection:
            there = known_rows(connection, [row["id"] for _number, row in self._batch])
        for number, row in self._batch:
            known = there.get(row["id"])
            self._known += known is not None
            if known is not None and not same_question(known, row):
                self._note(Fault(TAKEN, "use a new id", self._file, number, str(row["id"])))
            elif known is not None and self.asked.gold and known["purpose"] != "work":
                if known["purpose"] == "gold" and known["expected"]["ranking"] != row["expected"]["ranking"]:
                    problem = "this is gold already, with another known order"
                    self._note(Fault(problem, "leave it out, or give the same order", self._file, number, row["id"]))
            elif known is None or self.asked.gold:
                self._kept += known is not None
                if self._faulty:  # nothing will be queued
                    continue
                line = row | {"created": row["created"].isoformat(), "turn": known is not None}
                self._spool.write(json.dumps(line) + "\n")
        self._batch = []

    def _row(self, known: KnownComparison) -> dict[str, Any]:
        if self.asked.gold:
            return gold_row(Gold(known.comparison, known.ranking or ()), queue=self.asked.queue)
        return work_row(known.comparison, self.wanted, self.asked.queue)

    def _batches(self) -> Iterator[list[dict[str, Any]]]:
        rows = ({**row, "created": datetime.fromisoformat(row["created"])} for row in map(json.loads, self._spool))
        while batch := list(islice(rows, BATCH)):
            yield batch


def _votes_wanted(store: Store, queue: str, asked: int | None) -> int:
    """How many votes each new comparison of a queue wants: as ``asked``, or as the queue's settings say, or three."""
    require_queue_name(queue)
    if asked is not None and asked < 1:
        raise InputError([Fault("a comparison needs at least one vote", "ask for 1 or more", field="votes_wanted")])
    with store.read() as connection:
        own = current_queue(connection, queue)[1].votes_wanted
    return asked or own or VOTES_WANTED


def _faults(known: KnownComparison, file: str, row: int, *, gold: bool) -> Iterator[Fault]:
    for fault in comparison_faults(known.comparison):
        yield replace(fault, file=file, row=row)
    if gold and known.ranking is None:
        yield Fault("gold needs to know the better answer", "write prompt, chosen and rejected", file, row)
