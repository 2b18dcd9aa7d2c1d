"""Comparisons into the store, votes out of it: what ``rlhf votes`` does."""

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

from sqlalchemy import ColumnElement

from alignment.errors import Fault, InputError, raise_faults
from alignment.preferences.consensus import consensus, preference_pairs
from alignment.preferences.dawid_skene import Skill, rater_skill
from alignment.preferences.preference_files import (
    Correction,
    Form,
    KnownComparison,
    corrected_pairs,
    demonstrations,
    stream_comparisons,
    write_snapshot,
    write_votes,
)
from alignment.preferences.thumbs import labelled_answers, write_labelled_answers
from alignment.preferences.vote_agreement import Agreement, agreement_figures
from alignment.records import Comparison, PreferencePair, Record, Vote
from preference_ui.labelling.ballots import left_out, read_ballots, read_comparisons
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
    work_row,
)
from preference_ui.store.schema import accounts, comparisons, votes
from preference_ui.store.store import Store

T = TypeVar("T")
What = Literal["pairs", "thumbs", "votes", "demonstrations"]
Progress = Callable[[str, int], None]
RULING_WEIGHT = 100.0  # log-odds of an administrator's ruling; a very good rater's vote has about 5


class Filter(Record):
    """Which votes. Times are aware; ``raters`` are account names."""

    raters: tuple[str, ...] = ()
    since: datetime | None = None
    until: datetime | None = None
    min_agreement: float = 0.0
    min_votes: int = 1  # of a comparison, to be in
    queue: str | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        """The same, for :func:`~preference_ui.labelling.ballots.read_ballots`; ``min_votes`` and agreement apart."""
        chosen: list[ColumnElement[bool]] = []
        if self.raters:
            chosen.append(accounts.c.name.in_(self.raters))
        if self.since is not None:
            chosen.append(votes.c.created >= self.since)
        if self.until is not None:
            chosen.append(votes.c.created < self.until)
        if self.queue is not None:
            chosen.append(comparisons.c.queue == self.queue)
        return chosen


ALL = Filter()


class Export(Record):
    """What was written. ``digest`` is of the rows and the same for the same votes, whatever the format."""

    path: str
    rows: int
    votes: int
    raters: int
    comparisons: int
    digest: str
    agreement: float | None  # Krippendorff's α of the verdicts


class Imported(Record):
    """What became of a file's rows: each ``new``, ``repeated`` (an earlier row) or ``known`` (queued before)."""

    rows: int
    new: int
    repeated: int
    known: int


def import_comparisons(
    store: Store, path: Path, *, votes_wanted: int = 3, queue: str = "default", gold: bool = False, actor: str = "cli",
    progress: Progress | None = None, every_fault: bool = False,
) -> Imported:  # fmt: skip
    """Queues a file's comparisons (:func:`~alignment.preferences.preference_files.stream_comparisons`).

    A row with one ``response`` is voted up or down. ``gold`` stores rows with a known order (``chosen``, ``rejected``)
    as gold instead, mixed in silently. The file is read once and checked whole; then its rows go into the store batch
    by batch, so that raters go on meanwhile, and what an interruption leaves out comes in when the file is imported
    again. ``progress`` is told what is done ("checked" or "queued") and of how many rows. Raises InputError with the
    faults of all rows, the first twenty in full unless ``every_fault`` is to be; then nothing is queued.
    """
    if votes_wanted < 1:
        raise InputError([Fault("a comparison needs at least one vote", "ask for 1 or more", field="votes_wanted")])
    tell = progress or (lambda _what, _rows: None)
    with tempfile.TemporaryFile("w+", encoding="utf-8") as spool:
        incoming = _Incoming(store, path, spool, votes_wanted, queue, gold=gold)
        for at, one in enumerate(stream_comparisons(path, fewest=2 if gold else 1), start=1):
            incoming.take(one)
            if at % BATCH == 0:
                tell("checked", at)
        incoming.settle()
        faults = sorted(incoming.faults, key=lambda fault: fault.row or 0)
        if faults and every_fault:
            raise InputError(faults)
        raise_faults(faults)
        spool.seek(0)
        new = done = 0
        for batch in _batches(spool):
            new += insert_batch(store, batch, actor)
            done += len(batch)
            tell("queued", done)
    if new:
        count_anew(store)
    return Imported(rows=incoming.rows, new=new, repeated=incoming.rows - len(incoming.seen),
                    known=len(incoming.seen) - new)  # fmt: skip


class _Incoming:
    """The rows of a file on their way: checked, each once, against the store too, and laid down in ``spool``."""

    def __init__(self, store: Store, path: Path, spool: IO[str], votes_wanted: int, queue: str, *, gold: bool) -> None:
        self.store, self.path, self.spool, self.gold = store, path, spool, gold
        self.votes_wanted, self.queue = votes_wanted, queue
        self.rows = 0
        self.seen: set[str] = set()
        self.faults: list[Fault] = []
        self._batch: list[tuple[int, dict[str, Any]]] = []

    def take(self, one: tuple[int, KnownComparison] | Fault) -> None:
        """The next row of the file, or what is wrong in it."""
        if isinstance(one, Fault):
            self.faults.append(one)
            return
        number, known = one
        self.rows += 1
        faults = list(_import_faults(known, str(self.path), number, gold=self.gold))
        self.faults += faults
        if faults or known.comparison.id in self.seen:
            return
        self.seen.add(known.comparison.id)
        if not self.faults:  # or nothing will be queued
            self._batch.append((number, self._row(known)))
        if len(self._batch) >= BATCH:
            self.settle()

    def settle(self) -> None:
        """Compares what has gathered with the store, and lays down what is new."""
        with self.store.read() as connection:
            there = known_rows(connection, [row["id"] for _number, row in self._batch])
        for number, row in self._batch:
            known = there.get(row["id"])
            if known is None:
                self.spool.write(json.dumps(row | {"created": row["created"].isoformat()}) + "\n")
            elif not same_question(known, row):
                self.faults.append(Fault(TAKEN, "use a new id", str(self.path), number, str(row["id"])))
        self._batch = []

    def _row(self, known: KnownComparison) -> dict[str, Any]:
        if self.gold:
            return gold_row(Gold(known.comparison, known.ranking or ()))
        return work_row(known.comparison, self.votes_wanted, self.queue)


def _batches(spool: IO[str]) -> Iterator[list[dict[str, Any]]]:
    rows = ({**row, "created": datetime.fromisoformat(row["created"])} for row in map(json.loads, spool))
    while batch := list(islice(rows, BATCH)):
        yield batch


def _import_faults(known: KnownComparison, path: str, row: int, *, gold: bool) -> Iterator[Fault]:
    for fault in comparison_faults(known.comparison):
        yield replace(fault, file=path, row=row)
    if gold and known.ranking is None:
        yield Fault("gold needs to know the better answer", "write prompt, chosen and rejected", path, row)


def export_votes(
    store: Store, path: Path, *, what: What = "pairs", form: Form = "messages", chosen: Filter = ALL
) -> Export:
    """Writes preference pairs (TRL's columns), answers with a thumb (``prompt``, ``completion``, ``label``: TRL's
    unpaired form), the votes themselves, or the corrections as demonstrations.

    Pairs are .jsonl or .parquet, the others .jsonl. Corrections are pairs too: better than the answer they were made
    from. Raters appear under pseudonyms that stay the same from one export to the next. Raises InputError where
    nothing is left to write, or for another file name.
    """
    return write_export(read_votes(store, chosen), path, what, form, chosen.min_agreement)


def write_export(cast: "CastVotes", path: Path, what: What, form: Form, min_agreement: float) -> Export:
    """:func:`export_votes` of votes that were read before."""
    if what == "pairs":
        pairs = cast.pairs(min_agreement)
        rows, digest = len(pairs), write_snapshot(path, some(pairs, path), form)
    elif what == "thumbs":
        labelled = labelled_answers(cast.comparisons, cast.votes, min_agreement)
        rows, digest = len(labelled), write_labelled_answers(path, some(labelled, path), form)
    elif what == "votes":
        rows, digest = len(cast.votes), write_votes(path, some(cast.votes, path))
    else:
        made = demonstrations(cast.corrections)
        rows, digest = len(made), write_votes(path, some(made, path))
    figures = agreement_figures(cast.comparisons, cast.votes)
    alpha = next(one.value for one in figures if one.statistic == "krippendorff_alpha")
    raters = len({vote.rater for vote in cast.votes})
    return Export(path=str(path), rows=rows, votes=len(cast.votes), raters=raters, comparisons=len(cast.comparisons),
                  digest=digest, agreement=alpha)  # fmt: skip


def agreement(store: Store, *, chosen: Filter = ALL, bootstrap: int = 1000) -> list[Agreement]:
    """How far the raters agree: overall and per criterion, with 95 % intervals (``rlhf votes agreement``)."""
    cast = read_votes(store, chosen)
    return agreement_figures(cast.comparisons, cast.votes, bootstrap=bootstrap)


@dataclass(frozen=True, slots=True)
class CastVotes:
    """Votes that count, with the comparisons they are on, both in the order of their ids."""

    comparisons: list[Comparison]
    votes: list[Vote]
    corrections: list[Correction]
    rulings: list[Vote] = field(default_factory=list)  # an administrator's, on disputed comparisons

    def pairs(self, min_agreement: float) -> list[PreferencePair]:
        """The pairs to train on, in the order of their ids. A ruling outweighs all votes on its comparison; where it
        does not prefer one answer, there is no pair."""
        skill = rater_skill(self.comparisons, self.votes)
        if self.rulings:
            skill = self._with_rulings(skill)
        verdicts = consensus(self.comparisons, [*self.votes, *self.rulings], skill=skill)
        level = {one.comparison_id for one in self.rulings if one.outcome != "ranked" or one.strength == 0}
        decided = [verdict for verdict in verdicts if verdict.comparison_id not in level]
        agreed = preference_pairs(decided, self.comparisons, min_agreement)
        by_id = {pair.id: pair for pair in [*corrected_pairs(self.corrections), *agreed]}
        return [by_id[name] for name in sorted(by_id)]

    def _with_rulings(self, skill: Skill | None) -> Skill:
        weights: Skill = {one.id: dict((skill or {}).get(one.id, {})) for one in self.comparisons}
        for vote in self.votes:
            weights[vote.comparison_id].setdefault(vote.rater, 1.0)
        for ruling in self.rulings:
            weights[ruling.comparison_id][ruling.rater] = RULING_WEIGHT
        return weights


def read_votes(store: Store, chosen: Filter = ALL) -> CastVotes:
    """The standing votes on real work that are not left out: no gold, no repeats, no trials."""
    with store.read() as connection:
        kept = read_ballots(connection, ~left_out(), *chosen.conditions(), purposes=("work",))
        ruled = read_ballots(connection, ~left_out(), *_of_queue(chosen), purposes=("ruling",))
        judged = Counter(one.vote.comparison_id for one in kept if one.vote.outcome != "skipped")
        kept = [one for one in kept if judged[one.vote.comparison_id] >= chosen.min_votes]
        rows = read_comparisons(connection, {one.vote.comparison_id for one in kept})
    items = {
        name: Comparison.model_validate({"id": name, "prompt": row.prompt, "responses": row.responses})
        for name, row in rows.items()
    }
    in_order = sorted(kept, key=lambda one: one.vote.id)
    cast = [one.vote.model_copy(update={"rater": pseudonym(one.account)}) for one in in_order]
    corrections = [
        Correction(items[one.vote.comparison_id], one.correction["response"], one.correction["text"])
        for one in kept
        if one.correction is not None
    ]
    rulings = [
        one.vote.model_copy(update={"rater": f"{pseudonym(one.account)}-ruling"})
        for one in ruled
        if one.vote.comparison_id in items
    ]
    return CastVotes(list(items.values()), cast, corrections, rulings)


def _of_queue(chosen: Filter) -> list[ColumnElement[bool]]:
    return [] if chosen.queue is None else [comparisons.c.queue == chosen.queue]


def pseudonym(account_id: str) -> str:
    """A rater's name in exports: the same every time, and not theirs."""
    return f"rater-{hashlib.sha256(account_id.encode()).hexdigest()[:8]}"


def some(rows: Sequence[T], path: Path) -> Sequence[T]:
    """The rows, if there are any. Raises InputError."""
    if not rows:
        remedy = "collect more votes, or loosen the filter"
        raise InputError([Fault("no vote is left to write", remedy, file=str(path))])
    return rows
