"""Which comparison next: at random, the least voted, or the most informative; gold and repeats besides.

Every query is one walk along an index that stops at the first row that fits, so a long queue costs no more than a short
one.
"""

import random
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, exists, select

from preference_ui.desk_settings import DeskSettings
from preference_ui.schema import comparisons, leases, votes


def mine(account_id: str, purpose: str) -> ColumnElement[bool]:
    """Leases of this rater that are in hand or became votes."""
    live = leases.c.state.in_(["open", "voted"])
    return (leases.c.account_id == account_id) & (leases.c.purpose == purpose) & live


def eligible(account_id: str, purpose: str) -> ColumnElement[bool]:
    """Comparisons that this rater has not had."""
    had = exists().where(mine(account_id, purpose) & (leases.c.comparison_id == comparisons.c.id))
    return (comparisons.c.purpose == purpose) & ~comparisons.c.withdrawn & ~had


def pick_work(connection: Connection, account_id: str, policy: str, rng: random.Random) -> Row[Any] | None:
    """The next comparison under a policy, among those with room that the rater has not had."""
    condition = eligible(account_id, "work") & (comparisons.c.taken < comparisons.c.votes_wanted)
    query = select(comparisons.c.id, comparisons.c.responses).where(condition)
    if policy == "random":
        return _from_random_place(connection, query, rng)
    if policy == "least_voted":
        ordered = query.order_by(comparisons.c.taken, comparisons.c.shuffle)
    else:
        ordered = query.order_by(comparisons.c.informativeness.desc(), comparisons.c.taken, comparisons.c.shuffle)
    return _first(connection, ordered)


def pick_known(connection: Connection, account_id: str, purpose: str, rng: random.Random) -> Row[Any] | None:
    """A gold or trial comparison that this rater has not had, at random."""
    query = select(comparisons.c.id, comparisons.c.responses).where(eligible(account_id, purpose))
    return _from_random_place(connection, query, rng)


def pick_repeat(connection: Connection, account_id: str, settings: DeskSettings, rng: random.Random) -> Row[Any] | None:
    """A comparison that this rater ranked a while ago, for self-consistency: each at most once."""
    done = (votes.c.account_id == account_id) & (votes.c.purpose == "work") & (votes.c.outcome == "ranked")
    query = select(votes.c.comparison_id).where(done).order_by(votes.c.created.desc())
    old = connection.execute(query.offset(settings.repeat_after).limit(200)).scalars().all()
    again = select(leases.c.comparison_id).where(mine(account_id, "repeat"))
    seen = set(connection.execute(again).scalars())
    free = sorted(set(old) - seen)
    if not free:
        return None
    chosen = rng.choice(free)
    query = select(comparisons.c.id, comparisons.c.responses).where(comparisons.c.id == chosen)
    row: Row[Any] = connection.execute(query).one()
    return row


def _from_random_place(connection: Connection, query: Select[Any], rng: random.Random) -> Row[Any] | None:
    start = rng.random()
    by_shuffle = query.order_by(comparisons.c.shuffle)
    row = _first(connection, by_shuffle.where(comparisons.c.shuffle >= start))
    return _first(connection, by_shuffle) if row is None else row


def _first(connection: Connection, query: Select[Any]) -> Row[Any] | None:
    """The first row that no other transaction is about to take; where all are being taken, waits and looks again."""
    one = query.limit(1)
    row: Row[Any] | None
    row = connection.execute(one.with_for_update(of=comparisons, skip_locked=True, key_share=True)).first()
    if row is None and connection.dialect.name == "postgresql":
        row = connection.execute(one.with_for_update(of=comparisons, key_share=True)).first()
    return row
