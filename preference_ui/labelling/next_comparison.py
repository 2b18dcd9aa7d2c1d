"""Which comparison next, of a queue: at random, the least voted, or the most informative; gold and repeats besides.

Every query is one walk along an index that stops at the first row that fits, so a long queue costs no more than a short
one. The queries are built once: to put one together takes longer than the database takes to answer it. Which queues a
rater has is decided before (:mod:`preference_ui.labelling.queue_access`).
"""

import random
from collections.abc import Collection, Sequence
from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, bindparam, select

from preference_ui.store.schema import HAS_ROOM, IS_KNOWN, comparisons, leases, votes
from preference_ui.store.settings import DeskSettings

SHOWN: tuple[ColumnElement[Any], ...] = (
    comparisons.c.id,
    comparisons.c.prompt,
    comparisons.c.responses,
    comparisons.c.self_naming,
    comparisons.c.queue,
)
ACCOUNT: ColumnElement[str] = bindparam("account")
_START: ColumnElement[float] = bindparam("start")
_QUEUES: ColumnElement[str] = bindparam("queues", expanding=True)


def mine(purpose: str) -> ColumnElement[bool]:
    """Leases of the rater ``:account`` that are in hand or became votes."""
    live = leases.c.state.in_(["open", "voted"])
    return (leases.c.account_id == ACCOUNT) & (leases.c.purpose == purpose) & live


def _not_had(purpose: str) -> ColumnElement[bool]:
    """Comparisons that the rater ``:account`` has not had.

    OFFSET 0 keeps PostgreSQL from turning this into a join: for a table that it has no statistics of yet, it then looks
    at every lease for every comparison. So it asks an index, row by row, and walks no further than the first that fits.
    """
    had = select(leases.c.id).where(mine(purpose) & (leases.c.comparison_id == comparisons.c.id)).offset(0)
    return ~had.exists()


def pick_work(
    connection: Connection, account_id: str, queues: Sequence[str], policy: str, rng: random.Random, *, wait: bool
) -> Row[Any] | None:
    """The next comparison under a policy, among those of ``queues`` with room that the rater has not had.

    ``wait`` says what to do where all that is left is being taken at this moment: wait and look again, or None.
    """
    values: dict[str, Any] = {"account": account_id}
    if policy == "random":
        values["start"] = rng.random()
    in_order = queues if len(queues) < 2 else _by_their_heads(connection, queues, policy, values)
    for patiently in (False, True) if wait else (False,):
        for queue in in_order:
            of_queue = values | {"queue": queue}
            if policy != "random":
                row = _first(connection, _work(policy, None), of_queue, wait=patiently)
            else:
                walks = _work(policy, True), _work(policy, False)
                row = _from_there(connection, *walks, of_queue, wait=patiently)
            if row is not None:
                return row
        if connection.dialect.name != "postgresql":
            return None
    return None


def _by_their_heads(
    connection: Connection, queues: Sequence[str], policy: str, values: dict[str, Any]
) -> Sequence[str]:
    """Those of the queues that have something for the rater, in the order in which the policy has their first rows."""
    heads = []
    for queue in queues:
        of_queue = values | {"queue": queue}
        if policy != "random":
            row = connection.execute(_head(policy, None), of_queue).first()
            order = None if row is None else _ORDER[policy](row)
        else:
            row = connection.execute(_head(policy, True), of_queue).first()
            row = row or connection.execute(_head(policy, False), _without_start(of_queue)).first()
            order = None if row is None else ((row.shuffle - values["start"]) % 1.0,)
        if order is not None:
            heads.append((order, queue))
    return [queue for _order, queue in sorted(heads)]


def pick_known(
    connection: Connection, account_id: str, purpose: str, queues: Collection[str], rng: random.Random
) -> Row[Any] | None:
    """A gold or trial comparison of these queues that this rater has not had, at random."""
    values = {"account": account_id, "start": rng.random(), "queues": sorted(queues)}
    return _from_there(connection, _known(purpose, True), _known(purpose, False), values, wait=False)


def pick_repeat(
    connection: Connection, account_id: str, without: Collection[str], settings: DeskSettings, rng: random.Random
) -> Row[Any] | None:
    """A comparison that this rater ranked a while ago, for self-consistency: each at most once, none of the queues
    ``without``."""
    done = (votes.c.account_id == account_id) & (votes.c.purpose == "work") & (votes.c.outcome == "ranked")
    query = select(votes.c.comparison_id).where(done).order_by(votes.c.created.desc())
    if without:
        query = query.join_from(votes, comparisons).where(comparisons.c.queue.not_in(sorted(without)))
    old = connection.execute(query.offset(settings.repeat_after).limit(200)).scalars().all()
    again = select(leases.c.comparison_id).where(mine("repeat"))
    seen = set(connection.execute(again, {"account": account_id}).scalars())
    free = sorted(set(old) - seen)
    if not free:
        return None
    chosen = (comparisons.c.id == rng.choice(free)) & ~comparisons.c.held
    return connection.execute(select(*SHOWN).where(chosen)).first()


_ORDER: dict[str, Any] = {
    "least_voted": lambda row: (row.taken, row.shuffle),
    "most_informative": lambda row: (-row.informativeness, row.taken, row.shuffle),
}


@cache
def _work(policy: str, from_start: bool | None) -> Select[Any]:
    return _walk(select(*SHOWN), policy, from_start)


@cache
def _head(policy: str, from_start: bool | None) -> Select[Any]:
    columns = comparisons.c.taken, comparisons.c.shuffle, comparisons.c.informativeness
    return _walk(select(*columns), policy, from_start)


def _walk(query: Select[Any], policy: str, from_start: bool | None) -> Select[Any]:
    query = query.where(HAS_ROOM & (comparisons.c.queue == bindparam("queue")) & _not_had("work"))
    if policy == "random":
        return _along(query, from_start)
    if policy == "least_voted":
        return query.order_by(comparisons.c.taken, comparisons.c.shuffle).limit(1)
    return query.order_by(comparisons.c.informativeness.desc(), comparisons.c.taken, comparisons.c.shuffle).limit(1)


@cache
def _known(purpose: str, from_start: bool) -> Select[Any]:
    there = IS_KNOWN & (comparisons.c.purpose == purpose) & ~comparisons.c.withdrawn & ~comparisons.c.held
    if purpose != "trial":  # a trial is the same for all
        there = there & comparisons.c.queue.in_(_QUEUES)
    return _along(select(*SHOWN).where(there & _not_had(purpose)), from_start)


def _along(query: Select[Any], from_start: bool | None) -> Select[Any]:
    """Along the order of the shuffle, from ``:start`` on where ``from_start``."""
    chosen = query.where(comparisons.c.shuffle >= _START) if from_start else query
    return chosen.order_by(comparisons.c.shuffle).limit(1)


def _from_there(
    connection: Connection, onwards: Select[Any], anywhere: Select[Any], values: dict[str, Any], *, wait: bool
) -> Row[Any] | None:
    row = _first(connection, onwards, values, wait=False)
    return _first(connection, anywhere, _without_start(values), wait=wait) if row is None else row


def _without_start(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != "start"}


def _first(connection: Connection, query: Select[Any], values: dict[str, Any], *, wait: bool) -> Row[Any] | None:
    """The first row that no other transaction is about to take."""
    row: Row[Any] | None = connection.execute(_locking(query, True), values).first()
    if row is None and wait and connection.dialect.name == "postgresql":
        row = connection.execute(_locking(query, False), values).first()
    return row


@cache
def _locking(query: Select[Any], skip_locked: bool) -> Select[Any]:
    return query.with_for_update(of=comparisons, skip_locked=skip_locked, key_share=True)
