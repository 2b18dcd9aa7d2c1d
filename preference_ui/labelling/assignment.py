"""Who compares what, and when. One transaction leases one comparison to one rater.

Nobody gets a comparison twice (but for a silent repeat, kept apart from the votes), no comparison is given to more
raters than it wants, and one that is left lying returns to the queue. The database enforces the first two by
constraints, so that a mistake here fails instead of doubling a vote. Locks are taken in the order account, lease,
comparison.
"""

import random
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, bindparam, delete, func, insert, select, update

from alignment.records import Comparison
from preference_ui.labelling import next_comparison
from preference_ui.labelling.consent import may_work
from preference_ui.labelling.queue_access import QueueDesk, in_wrong_hands, is_withheld
from preference_ui.store.errors import Refusal
from preference_ui.store.schema import accounts, comparisons, drafts, leases
from preference_ui.store.settings import DeskSettings
from preference_ui.store.store import Store, current_settings, now, record

_SWEEP_AT_ONCE = 200
_SYSTEM = random.SystemRandom()
_RATER = select(accounts).where(accounts.c.id == next_comparison.ACCOUNT).with_for_update(key_share=True)
_IN_HAND = (
    select(leases)
    .where((leases.c.account_id == next_comparison.ACCOUNT) & (leases.c.state == "open"))
    .order_by(leases.c.revises.is_(None))  # an undone vote comes first
    .limit(1)
    .with_for_update(key_share=True)
)
_ITEM = select(*next_comparison.SHOWN).where(comparisons.c.id == bindparam("comparison"))
_TAKE = (
    update(comparisons)
    .where((comparisons.c.id == bindparam("comparison")) & (comparisons.c.taken < comparisons.c.votes_wanted))
    .where(~comparisons.c.withdrawn)
    .values(taken=comparisons.c.taken + 1)
)
_HAND_OUT = insert(leases).returning(*leases.c)


@dataclass(frozen=True, slots=True)
class Lease:
    """A comparison in a rater's hands. ``order`` are response ids as shown, drawn by the server and stored."""

    id: str
    comparison: Comparison
    purpose: str
    order: tuple[str, ...]
    revises: str | None
    created: datetime
    expires: datetime
    self_naming: frozenset[str]
    fresh: bool  # handed out just now: there can be no draft of it
    queue: str  # as which it is shown


def next_lease(store: Store, account_id: str, *, rng: random.Random | None = None) -> Lease | None:
    """The comparison that this rater should see now: the one in hand, else a new one; None when nothing is left.

    Raises Refusal where the rater may not vote (paused, disabled).
    """
    for _ in range(3):
        with store.write() as connection:
            account = lock_rater(connection, account_id)
            dropped = _take_away(connection, account)
            settings = current_settings(connection)[1]
            lease = None if dropped else hand_over(connection, account, settings, rng, wait=True)
        if lease is not None:
            return lease
        if not dropped and not sweep(store):  # nothing for this rater: perhaps somebody left something lying
            return None
    return None


def hand_over(
    connection: Connection, account: Row[Any], settings: DeskSettings, rng: random.Random | None = None, *, wait: bool
) -> Lease | None:
    """The comparison in this locked rater's hand, else a new one.

    A transaction that already holds a comparison must not ``wait`` for another: it gets None instead and asks again
    through :func:`next_lease`.
    """
    row = connection.execute(_IN_HAND, {"account": account.id}).first()
    if row is None:
        return _draw(connection, account, settings, rng or _SYSTEM, wait)
    if is_withheld(connection, account.name, row):
        return None  # next_lease takes it away
    return read_lease(connection, _renewed(connection, row, settings))


def _take_away(connection: Connection, account: Row[Any]) -> int:
    """Takes out of a rater's hands what is withheld by now. Returns how many."""
    others = in_wrong_hands(connection, account)
    for row in others:
        connection.execute(delete(drafts).where(drafts.c.lease_id == row.id))
        close = update(leases).where(leases.c.id == row.id)
        connection.execute(close.values(state="expired", holds_place=False))
        if row.holds_place:
            give_back(connection, row.comparison_id)
    return len(others)


def sweep(store: Store) -> int:
    """Returns abandoned leases to the queue. Returns how many places became free."""
    freed = 0
    with store.write() as connection:
        condition = (leases.c.state == "open") & (leases.c.expires < now())
        query = select(leases.c.id, leases.c.comparison_id, leases.c.holds_place).where(condition).order_by(leases.c.id)
        stale = connection.execute(query.limit(_SWEEP_AT_ONCE).with_for_update(skip_locked=True)).all()
        for row in sorted(stale, key=lambda row: str(row.comparison_id)):  # one order for all: no deadlock
            close = update(leases).where((leases.c.id == row.id) & (leases.c.state == "open"))
            connection.execute(close.values(state="expired", holds_place=False))
            if row.holds_place:
                give_back(connection, row.comparison_id)
                freed += 1
    return freed


def lock_rater(connection: Connection, account_id: str) -> Row[Any]:
    """Locks a rater's account for this transaction. Raises Refusal where the rater may not vote."""
    row = connection.execute(_RATER, {"account": account_id}).first()
    if row is None or row.state == "disabled":
        raise Refusal("no_account", "This account is no longer active. Please ask your administrator.")
    if row.state == "paused":
        raise Refusal("paused", "Your work is paused by an administrator. Nothing you did is lost.")
    return row


def give_back(connection: Connection, comparison_id: str) -> None:
    """One rater fewer has this comparison."""
    query = update(comparisons).where(comparisons.c.id == comparison_id)
    connection.execute(query.values(taken=comparisons.c.taken - 1))


def hold(connection: Connection, comparison_id: str, actor: str) -> None:
    """Has a comparison handed out no more until an administrator has looked at it, and takes it out of other hands.

    A lease that another transaction is at work with at this moment is left to it.
    """
    mark = update(comparisons).where((comparisons.c.id == comparison_id) & ~comparisons.c.held)
    if connection.execute(mark.values(held=True)).rowcount == 0:
        return
    in_hand = (leases.c.comparison_id == comparison_id) & (leases.c.state == "open") & leases.c.revises.is_(None)
    held = select(leases.c.id, leases.c.holds_place).where(in_hand).with_for_update(skip_locked=True)
    for row in connection.execute(held).all():
        close = update(leases).where(leases.c.id == row.id)
        connection.execute(close.values(state="expired", holds_place=False))
        if row.holds_place:
            give_back(connection, comparison_id)
    record(connection, actor, "comparison.hold", comparison_id, {})


def take_place(connection: Connection, comparison_id: str) -> bool:
    """Takes a place among a comparison's raters; False where there is none left."""
    return connection.execute(_TAKE, {"comparison": comparison_id}).rowcount == 1


def take_place_late(connection: Connection, account_id: str, comparison_id: str) -> bool:
    """Takes a place for a vote whose lease expired: if there is one left and the rater has no newer lease of it."""
    newer = select(leases.c.id).where(next_comparison.mine("work") & (leases.c.comparison_id == comparison_id))
    busy = connection.execute(newer, {"account": account_id}).first()
    return busy is None and take_place(connection, comparison_id)


def _renewed(connection: Connection, row: Row[Any], settings: DeskSettings) -> Row[Any]:
    if row.expires > now():
        return row
    renewed = now() + lease_time(settings)  # nobody took it: the rater came back in time
    connection.execute(update(leases).where(leases.c.id == row.id).values(expires=renewed))
    return connection.execute(select(leases).where(leases.c.id == row.id)).one()


def _draw(
    connection: Connection, account: Row[Any], settings: DeskSettings, rng: random.Random, wait: bool
) -> Lease | None:
    def hand_out(picked: Row[Any], purpose: str, drawn_by: str, queue: str | None = None) -> Lease:
        order = [response["id"] for response in picked.responses]
        rng.shuffle(order)
        row = insert_lease(connection, settings, account.id, picked.id, purpose, order, drawn_by, purpose == "work",
                           None, queue=queue or picked.queue)  # fmt: skip
        return _lease_of(row, picked, fresh=True)

    if not may_work(connection, account.id, settings):
        return None
    if settings.trial_required and not account.trial_passed:
        trial = next_comparison.pick_known(connection, account.id, "trial", (), rng)
        if trial is not None:
            return hand_out(trial, "trial", "random")
        if settings.pass_mark is not None:
            return None  # see qualification.missed_mark
    queues = QueueDesk(connection, account.name)
    roll = rng.random()
    repeats = settings.gold_share <= roll < settings.gold_share + settings.repeat_share
    if repeats:
        withheld = queues.withheld()
        repeat = next_comparison.pick_repeat(connection, account.id, withheld, settings, rng)
        if repeat is not None:
            return hand_out(repeat, "repeat", "random")
    policy = "random" if rng.random() < settings.random_share else settings.policy
    picked = _pick(connection, account, queues, policy, rng, wait)
    if roll < settings.gold_share:  # shown as of the queue whose turn it is, or it could be told
        here = None if picked is None else str(picked.queue)
        gold = next_comparison.pick_known(connection, account.id, "gold", queues.of_gold(here), rng)
        if gold is not None:
            return hand_out(gold, "gold", "random", here)
    if picked is None or not take_place(connection, picked.id):
        return None
    return hand_out(picked, "work", policy)


def _pick(
    connection: Connection, account: Row[Any], queues: QueueDesk, policy: str, rng: random.Random, wait: bool
) -> Row[Any] | None:
    """The next comparison of the queues of the highest priority that have one for this rater."""
    for group in queues.groups():
        picked = next_comparison.pick_work(connection, account.id, group, policy, rng, wait=wait)
        if picked is not None:
            return picked
    return None


def insert_lease(
    connection: Connection,
    settings: DeskSettings,
    account_id: str,
    comparison_id: str,
    purpose: str,
    order: Sequence[str],
    drawn_by: str,
    holds_place: bool,
    revises: str | None,
    *,
    queue: str,
) -> Row[Any]:
    """Writes an open lease that begins now, shown as of ``queue``."""
    moment = now()
    values = {
        "id": secrets.token_urlsafe(16),
        "comparison_id": comparison_id,
        "account_id": account_id,
        "purpose": purpose,
        "state": "open",
        "order": list(order),
        "drawn_by": drawn_by,
        "holds_place": holds_place,
        "revises": revises,
        "created": moment,
        "expires": moment + lease_time(settings),
        "queue": queue,
    }
    return connection.execute(_HAND_OUT, values).one()


def lease_time(settings: DeskSettings) -> timedelta:
    """How long a comparison may stay in a rater's hands without a sign of life."""
    return timedelta(minutes=settings.lease_minutes)


def read_lease(connection: Connection, row: Row[Any]) -> Lease:
    """A lease's row with its comparison."""
    return _lease_of(row, connection.execute(_ITEM, {"comparison": row.comparison_id}).one(), fresh=False)


def _lease_of(row: Row[Any], item: Row[Any], *, fresh: bool) -> Lease:
    return Lease(
        id=row.id,
        comparison=Comparison.model_validate({"id": item.id, "prompt": item.prompt, "responses": item.responses}),
        purpose=row.purpose,
        order=tuple(row.order),
        revises=row.revises,
        created=row.created,
        expires=row.expires,
        self_naming=frozenset(item.self_naming),
        fresh=fresh,
        queue=row.queue,
    )


def open_leases(store: Store) -> int:
    """How many comparisons are in raters' hands now."""
    with store.read() as connection:
        condition = (leases.c.state == "open") & (leases.c.expires >= now())
        return int(connection.execute(select(func.count()).select_from(leases).where(condition)).scalar_one())
