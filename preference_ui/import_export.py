"""Comparisons into the store, votes out of it: what ``rlhf votes`` does."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Literal, TypeVar

from sqlalchemy import select

from alignment.errors import Fault, InputError, raise_faults
from alignment.preferences.consensus import consensus, preference_pairs
from alignment.preferences.dawid_skene import rater_skill
from alignment.preferences.preference_files import (
    Correction,
    Form,
    KnownComparison,
    corrected_pairs,
    demonstrations,
    first_rows,
    numbered_comparisons,
    write_snapshot,
    write_votes,
)
from alignment.preferences.thumbs import labelled_answers, write_labelled_answers
from alignment.preferences.vote_agreement import Agreement, agreement_figures
from alignment.records import Comparison, PreferencePair, Record, Vote
from preference_ui.labelling.ballots import read_ballots
from preference_ui.labelling.queue import Gold, comparison_faults, queue_comparisons, queue_gold
from preference_ui.store.schema import comparisons, votes
from preference_ui.store.store import Store

T = TypeVar("T")
What = Literal["pairs", "thumbs", "votes", "demonstrations"]


class Filter(Record):
    """Which votes. Times are aware; ``raters`` are account names."""

    raters: tuple[str, ...] = ()
    since: datetime | None = None
    until: datetime | None = None
    min_agreement: float = 0.0
    min_votes: int = 1  # of a comparison, to be in
    queue: str | None = None

    def takes(self, vote: Vote, queue: str) -> bool:
        """Whether a vote is in."""
        created = vote.created
        return (
            (not self.raters or vote.rater in self.raters)
            and (self.since is None or (created is not None and created >= self.since))
            and (self.until is None or (created is not None and created < self.until))
            and self.queue in (None, queue)
        )


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
    store: Store, path: Path, *, votes_wanted: int = 3, queue: str = "default", gold: bool = False, actor: str = "cli"
) -> Imported:
    """Queues a file's comparisons (:func:`~alignment.preferences.preference_files.read_comparisons`); counts each row.

    A row with one ``response`` is voted up or down.
    ``gold`` stores rows with a known order (``chosen``, ``rejected``) as gold instead, mixed in silently. Raises
    InputError with the faults of all rows; then nothing is queued.
    """
    rows = numbered_comparisons(path, fewest=2 if gold else 1)
    raise_faults([fault for number, known in rows for fault in _import_faults(known, str(path), number, gold=gold)])
    first = first_rows(rows)
    if gold:
        new = queue_gold(store, [Gold(known.comparison, known.ranking or ()) for known in first.values()], actor=actor)
    else:
        items = [known.comparison for known in first.values()]
        new = queue_comparisons(store, items, votes_wanted=votes_wanted, queue=queue, actor=actor)
    return Imported(rows=len(rows), new=new, repeated=len(rows) - len(first), known=len(first) - new)


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

    def pairs(self, min_agreement: float) -> list[PreferencePair]:
        """The pairs to train on, in the order of their ids."""
        skill = rater_skill(self.comparisons, self.votes)
        verdicts = consensus(self.comparisons, self.votes, skill=skill)
        agreed = preference_pairs(verdicts, self.comparisons, min_agreement)
        by_id = {pair.id: pair for pair in [*corrected_pairs(self.corrections), *agreed]}
        return [by_id[name] for name in sorted(by_id)]


def read_votes(store: Store, chosen: Filter = ALL) -> CastVotes:
    """The standing votes on real work that are not left out: no gold, no repeats, no trials."""
    with store.read() as connection:
        ballots = [one for one in read_ballots(connection) if one.purpose == "work" and not one.excluded]
        columns = (comparisons.c.id, comparisons.c.prompt, comparisons.c.responses, comparisons.c.queue)
        rows = {row.id: row for row in connection.execute(select(*columns).order_by(comparisons.c.id))}
        corrected = select(votes.c.id, votes.c.correction).where(votes.c.correction.is_not(None))
        better = {row.id: row.correction for row in connection.execute(corrected)}
    kept = [one for one in ballots if chosen.takes(one.vote, rows[one.vote.comparison_id].queue)]
    judged = Counter(one.vote.comparison_id for one in kept if one.vote.outcome != "skipped")
    kept = [one for one in kept if judged[one.vote.comparison_id] >= chosen.min_votes]
    items = {
        name: Comparison.model_validate({"id": name, "prompt": rows[name].prompt, "responses": rows[name].responses})
        for name in sorted({one.vote.comparison_id for one in kept})
    }
    cast = [one.vote.model_copy(update={"rater": pseudonym(one.account)}) for one in kept]
    corrections = [
        Correction(items[vote.comparison_id], better[vote.id]["response"], better[vote.id]["text"])
        for vote in cast
        if vote.id in better
    ]
    in_order = sorted(cast, key=lambda vote: vote.id)
    return CastVotes(list(items.values()), in_order, corrections)


def pseudonym(account_id: str) -> str:
    """A rater's name in exports: the same every time, and not theirs."""
    return f"rater-{hashlib.sha256(account_id.encode()).hexdigest()[:8]}"


def some(rows: Sequence[T], path: Path) -> Sequence[T]:
    """The rows, if there are any. Raises InputError."""
    if not rows:
        remedy = "collect more votes, or loosen the filter"
        raise InputError([Fault("no vote is left to write", remedy, file=str(path))])
    return rows
