"""Votes out of the store: what ``rlhf votes export`` and ``agreement`` do."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal, TypeVar

from sqlalchemy import ColumnElement

from alignment.errors import Fault, InputError
from alignment.preferences.consensus import consensus, preference_pairs
from alignment.preferences.dawid_skene import Skill, rater_skill
from alignment.preferences.preference_files import (
    Correction,
    Form,
    corrected_pairs,
    demonstrations,
    write_snapshot,
    write_votes,
)
from alignment.preferences.single_answers.scores import scored_answers
from alignment.preferences.single_answers.spans import Marking, answer_spans, span_agreement
from alignment.preferences.thumbs import labelled_answers, records_digest, write_labelled_answers
from alignment.preferences.vote_agreement import Agreement, agreement_figures
from alignment.records import Comparison, FeedbackKind, PreferencePair, Record, Vote
from preference_ui.labelling.ballots import left_out, read_ballots, read_comparisons
from preference_ui.store.schema import accounts, comparisons, votes
from preference_ui.store.store import Store

T = TypeVar("T")
What = Literal["pairs", "thumbs", "rewrites", "scores", "spans", "votes", "demonstrations"]
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
    agreement: float | None  # Krippendorff's α of the verdicts, or of what the rows say
    what: What = "pairs"


def export_votes(
    store: Store, path: Path, *, what: What = "pairs", form: Form = "messages", chosen: Filter = ALL
) -> Export:
    """Writes preference pairs (TRL's columns), answers with a thumb (``prompt``, ``completion``, ``label``: TRL's
    unpaired form), rewritten answers as pairs, mean scores of single answers, marked parts of them, the votes
    themselves, or the corrections as demonstrations.

    Pairs and rewrites are .jsonl or .parquet, the others .jsonl. Corrections are pairs too: better than the answer
    they were made from. Raters appear under pseudonyms that stay the same from one export to the next. Raises
    InputError where nothing is left to write, or for another file name.
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
    elif what in ("scores", "spans"):
        made = cast.made(what, min_agreement)
        write_votes(path, some(made, path))
        rows, digest = len(made), records_digest(made)
    elif what == "rewrites":
        pairs = cast.rewrites()
        rows, digest = len(pairs), write_snapshot(path, some(pairs, path), form)
    elif what == "votes":
        rows, digest = len(cast.votes), write_votes(path, some(cast.votes, path))
    else:
        examples = demonstrations(cast.corrections)
        rows, digest = len(examples), write_votes(path, some(examples, path))
    raters = len({vote.rater for vote in cast.votes})
    return Export(path=str(path), rows=rows, votes=len(cast.votes), raters=raters, comparisons=len(cast.comparisons),
                  digest=digest, agreement=cast.alpha(what), what=what)  # fmt: skip


def agreement(store: Store, *, chosen: Filter = ALL, bootstrap: int = 1000) -> list[Agreement]:
    """How far the raters agree: overall, per criterion and per label of marks, with 95 % intervals (``rlhf votes
    agreement``)."""
    return read_votes(store, chosen).figures(bootstrap)


@dataclass(frozen=True, slots=True)
class CastVotes:
    """Votes that count, with the comparisons they are on, both in the order of their ids."""

    comparisons: list[Comparison]
    votes: list[Vote]
    corrections: list[Correction]
    rulings: list[Vote] = field(default_factory=list)  # an administrator's, on disputed comparisons
    markings: list[Marking] = field(default_factory=list)  # what raters marked of single answers

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

    def made(self, feedback: FeedbackKind, min_agreement: float) -> Sequence[Record]:
        """What the votes come to, as records to train on."""
        if feedback == "thumbs":
            return labelled_answers(self.comparisons, self.votes, min_agreement)
        if feedback == "rewrites":
            return self.rewrites()
        if feedback == "scores":
            return scored_answers(self.comparisons, self.votes)
        return answer_spans(self.markings) if feedback == "spans" else self.pairs(min_agreement)

    def rewrites(self) -> list[PreferencePair]:
        """What raters wrote, as better than what they were shown; each once, in the order of their ids."""
        by_id = {pair.id: pair for pair in corrected_pairs(self.corrections)}
        return [by_id[name] for name in sorted(by_id)]

    def figures(self, bootstrap: int = 0) -> list[Agreement]:
        """How far raters agree on everything that they were asked."""
        figures = agreement_figures(self.comparisons, self.votes, bootstrap=bootstrap)
        return [*figures, *span_agreement(self.markings, bootstrap=bootstrap)]

    def alpha(self, what: What) -> float | None:
        """Krippendorff's α of what was asked: of verdicts, or of thumbs; of several scores or labels the lowest. None
        where it is undefined, and of what people wrote."""
        alphas = {one.of: one.value for one in self.figures() if one.statistic == "krippendorff_alpha"}
        names = {"scores": set(alphas) - {"verdict", "thumb"}, "spans": set(alphas), "thumbs": {"thumb"},
                 "rewrites": set[str](), "demonstrations": set[str]()}.get(what, {"verdict"})  # fmt: skip
        is_label = what == "spans"
        found = [alphas[of] for of in names & set(alphas) if of.startswith("spans.") == is_label]
        known = [value for value in found if value is not None]
        return min(known, default=None)

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
    markings = [
        Marking(items[one.vote.comparison_id], pseudonym(one.account), one.spans)
        for one in in_order
        if one.spans is not None
    ]
    return CastVotes(list(items.values()), cast, corrections, rulings, markings)


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
