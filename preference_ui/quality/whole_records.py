"""Records whole: a comparison with its texts and their makers, every vote, ruling, comment and flag, and who did what.

Raters appear under the pseudonyms of the exports, in the trail too.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, exists, select

from alignment.records import Outcome, Record
from preference_ui.import_export import ALL, Filter, pseudonym
from preference_ui.labelling.ballots import left_out
from preference_ui.store.schema import accounts, audit, comparisons, votes
from preference_ui.store.store import Store

BATCH = 200  # records that are held at once


class GivenVote(Record):
    """A vote as it was given. ``ranking`` holds response ids, best first, ties sharing a group.

    ``purpose`` is work, repeat (the same rater, asked again to see how steady votes are) or a ruling.
    A vote that another one supersedes, or that is left out, counts no more.
    """

    id: str
    rater: str
    purpose: str
    outcome: Outcome
    ranking: tuple[tuple[str, ...], ...]
    strength: int | None
    criteria: dict[str, int]
    reason: str
    comment: str
    correction: dict[str, str] | None
    spans: tuple[dict[str, Any], ...] | None = None  # marked parts of a single answer, in code points
    seconds: float
    created: datetime
    supersedes: str | None
    superseded: bool
    left_out: bool


class TrailLine(Record):
    """Who did what with a record, beside voting on it."""

    at: datetime
    actor: str
    action: str


class WholeRecord(Record):
    """A comparison and all that is known of it. ``prompt`` and ``responses`` are as they were queued: each response
    with the model that wrote it ("stage@version:digest"), its seed and sampling."""

    id: str
    queue: str
    created: datetime
    votes_wanted: int
    held: bool
    withdrawn: bool
    prompt: dict[str, Any]
    responses: tuple[dict[str, Any], ...]
    votes: tuple[GivenVote, ...]
    trail: tuple[TrailLine, ...]


def all_records(store: Store, chosen: Filter = ALL) -> Iterator[WholeRecord]:
    """The records of real work in the order of their ids, those of the filter's queue and votes; a few are held at a
    time. Each has all its votes, whichever it was chosen by."""
    after: str | None = None
    while batch := records_after(store, after, BATCH, chosen):
        yield from batch
        after = batch[-1].id


def records_after(store: Store, after: str | None, limit: int, chosen: Filter = ALL) -> list[WholeRecord]:
    """As many records as ``limit``, those whose ids come next after ``after``."""
    where = [comparisons.c.purpose == "work", *_conditions(chosen)]
    if after is not None:
        where.append(comparisons.c.id > after)
    with store.read() as connection:
        rows = connection.execute(select(comparisons).where(*where).order_by(comparisons.c.id).limit(limit)).all()
        return _whole(connection, rows)


def whole_record(store: Store, identifier: str) -> WholeRecord | None:
    """The record with this id; None where there is none."""
    with store.read() as connection:
        one = (comparisons.c.id == identifier) & (comparisons.c.purpose == "work")
        return next(iter(_whole(connection, connection.execute(select(comparisons).where(one)).all())), None)


def _conditions(chosen: Filter) -> list[ColumnElement[bool]]:
    where: list[ColumnElement[bool]] = [] if chosen.queue is None else [comparisons.c.queue == chosen.queue]
    if chosen.raters or chosen.since is not None or chosen.until is not None:
        fits = chosen.model_copy(update={"queue": None}).conditions()
        voted = select(votes.c.id).join(accounts, votes.c.account_id == accounts.c.id)
        where.append(exists(voted.where(votes.c.comparison_id == comparisons.c.id, *fits).correlate(comparisons)))
    return where


def _whole(connection: Connection, rows: Sequence[Row[Any]]) -> list[WholeRecord]:
    names = [row.id for row in rows]
    given, trail = _votes_on(connection, names), _trail_of(connection, names)
    return [
        WholeRecord(
            id=row.id, queue=row.queue, created=row.created, votes_wanted=row.votes_wanted, held=row.held,
            withdrawn=row.withdrawn, prompt=row.prompt, responses=tuple(row.responses),
            votes=tuple(given[row.id]), trail=tuple(trail[row.id]),
        )
        for row in rows
    ]  # fmt: skip


def _votes_on(connection: Connection, names: Sequence[str]) -> Mapping[str, list[GivenVote]]:
    later = votes.alias("later")
    superseded = exists().where(later.c.supersedes == votes.c.id).label("superseded")
    query = (
        select(votes, left_out().label("left_out"), superseded)
        .where(votes.c.comparison_id.in_(names))
        .order_by(votes.c.created, votes.c.id)
    )
    found: dict[str, list[GivenVote]] = defaultdict(list)
    for row in connection.execute(query):
        name = pseudonym(row.account_id)
        found[row.comparison_id].append(
            GivenVote(
                id=row.id, rater=f"{name}-ruling" if row.purpose == "ruling" else name, purpose=row.purpose,
                outcome=row.outcome, ranking=tuple(map(tuple, row.ranking)), strength=row.strength,
                criteria=row.criteria, reason=row.reason, comment=row.comment, correction=row.correction,
                spans=None if row.spans is None else tuple(row.spans),
                seconds=row.seconds, created=row.created, supersedes=row.supersedes,
                superseded=bool(row.superseded), left_out=bool(row.left_out),
            )
        )  # fmt: skip
    return found


def _trail_of(connection: Connection, names: Sequence[str]) -> Mapping[str, list[TrailLine]]:
    about = audit.c.subject.in_([name[:160] for name in names]) & audit.c.action.startswith("comparison.")
    query = (
        select(audit.c.subject, audit.c.at, audit.c.actor, audit.c.action, accounts.c.id.label("account_id"))
        .outerjoin_from(audit, accounts, audit.c.actor == accounts.c.name)
        .where(about)
        .order_by(audit.c.id)
    )
    found: dict[str, list[TrailLine]] = defaultdict(list)
    for row in connection.execute(query):
        actor = row.actor if row.account_id is None else pseudonym(row.account_id)
        found[row.subject].append(TrailLine(at=row.at, actor=actor, action=row.action))
    return found
