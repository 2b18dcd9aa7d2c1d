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

from sqlalchemy import Connection, Row, exists, func, insert, select, update

from alignment.records import Comparison
from preference_ui import drawing
from preference_ui.refusal import Refusal
from preference_ui.schema import accounts, comparisons, exclusions, leases, votes
from preference_ui.store import Store, current_settings, now

_SWEEP_AT_ONCE = 200


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


def next_lease(store: Store, account_id: str, *, rng: random.Random | None = None) -> Lease | None:
    """The comparison that this rater should see now: the one in hand, else a new one; None when nothing is left.

    Raises Refusal where the rater may not vote (paused, disabled).
    """
    generator = rng or random.SystemRandom()
    for _ in range(2):
        with store.write() as connection:
            account = lock_rater(connection, account_id)
            row = _in_hand(connection, account_id)
            if row is None:
                row = _draw(connection, account, generator)
            if row is not None:
                return _lease(connection, row)
        if not sweep(store):  # nothing for this rater: perhaps somebody left something lying
            return None
    return None


def reopen(store: Store, account_id: str) -> Lease:
    """Undo: opens the rater's newest vote again. The vote holds until another supersedes it.

    Raises Refusal where there is nothing to undo or it can no longer be changed.
    """
    with store.write() as connection:
        lock_rater(connection, account_id)
        vote = _newest_vote(connection, account_id)
        if vote is None:
            raise Refusal("nothing_to_undo", "There is no vote to undo yet.")
        if connection.execute(select(exclusions).where(exclusions.c.vote_id == vote.id)).first() is not None:
            raise Refusal("excluded", "This vote was set aside by an administrator and can no longer be changed.")
        already = connection.execute(select(leases).where((leases.c.revises == vote.id) & (leases.c.state == "open")))
        if (row := already.first()) is not None:
            return _lease(connection, row)
        order = connection.execute(select(leases.c.order).where(leases.c.id == vote.lease_id)).scalar_one()
        takes = vote.purpose == "work" and vote.outcome == "skipped"  # a skip gave its place away
        if takes and not _take_place(connection, vote.comparison_id):
            raise Refusal("finished_by_others", "You skipped this one, and others have finished it in the meantime.")
        row = _insert_lease(connection, account_id, vote.comparison_id, vote.purpose, order, "undo", takes, vote.id)
        return _lease(connection, row)


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
    query = select(accounts).where(accounts.c.id == account_id).with_for_update(key_share=True)
    row = connection.execute(query).first()
    if row is None or row.state == "disabled":
        raise Refusal("no_account", "This account is no longer active. Please ask your administrator.")
    if row.state == "paused":
        raise Refusal("paused", "Your work is paused by an administrator. Nothing you did is lost.")
    return row


def give_back(connection: Connection, comparison_id: str) -> None:
    """One rater fewer has this comparison."""
    query = update(comparisons).where(comparisons.c.id == comparison_id)
    connection.execute(query.values(taken=comparisons.c.taken - 1))


def _take_place(connection: Connection, comparison_id: str) -> bool:
    room = (comparisons.c.id == comparison_id) & (comparisons.c.taken < comparisons.c.votes_wanted)
    query = update(comparisons).where(room & ~comparisons.c.withdrawn)
    return connection.execute(query.values(taken=comparisons.c.taken + 1)).rowcount == 1


def take_place_late(connection: Connection, account_id: str, comparison_id: str) -> bool:
    """Takes a place for a vote whose lease expired: if there is one left and the rater has no newer lease of it."""
    newer = drawing.mine(account_id, "work")
    busy = connection.execute(select(leases.c.id).where(newer & (leases.c.comparison_id == comparison_id))).first()
    return busy is None and _take_place(connection, comparison_id)


def _in_hand(connection: Connection, account_id: str) -> Row[Any] | None:
    condition = (leases.c.account_id == account_id) & (leases.c.state == "open")
    query = select(leases).where(condition).order_by(leases.c.revises.is_(None)).limit(1)  # an undone vote comes first
    row = connection.execute(query.with_for_update(key_share=True)).first()
    if row is None or row.expires > now():
        return row
    renewed = now() + lease_time(connection)  # nobody took it: the rater came back in time
    connection.execute(update(leases).where(leases.c.id == row.id).values(expires=renewed))
    return connection.execute(select(leases).where(leases.c.id == row.id)).one()


def _draw(connection: Connection, account: Row[Any], rng: random.Random) -> Row[Any] | None:
    settings = current_settings(connection)[1]
    if settings.trial_required and not account.trial_passed:
        trial = drawing.pick_known(connection, account.id, "trial", rng)
        if trial is not None:
            return _hand_out(connection, account.id, trial, "trial", "random", rng)
    roll = rng.random()
    if roll < settings.gold_share:
        gold = drawing.pick_known(connection, account.id, "gold", rng)
        if gold is not None:
            return _hand_out(connection, account.id, gold, "gold", "random", rng)
    elif roll < settings.gold_share + settings.repeat_share:
        repeat = drawing.pick_repeat(connection, account.id, settings, rng)
        if repeat is not None:
            return _hand_out(connection, account.id, repeat, "repeat", "random", rng)
    policy = "random" if rng.random() < settings.random_share else settings.policy
    picked = drawing.pick_work(connection, account.id, policy, rng)
    if picked is None or not _take_place(connection, picked.id):
        return None
    return _hand_out(connection, account.id, picked, "work", policy, rng)


def _hand_out(
    connection: Connection, account_id: str, picked: Row[Any], purpose: str, drawn_by: str, rng: random.Random
) -> Row[Any]:
    order = [response["id"] for response in picked.responses]
    rng.shuffle(order)
    return _insert_lease(connection, account_id, picked.id, purpose, order, drawn_by, purpose == "work", None)


def _insert_lease(
    connection: Connection,
    account_id: str,
    comparison_id: str,
    purpose: str,
    order: Sequence[str],
    drawn_by: str,
    holds_place: bool,
    revises: str | None,
) -> Row[Any]:
    identifier = secrets.token_urlsafe(16)
    values = {
        "id": identifier,
        "comparison_id": comparison_id,
        "account_id": account_id,
        "purpose": purpose,
        "state": "open",
        "order": list(order),
        "drawn_by": drawn_by,
        "holds_place": holds_place,
        "revises": revises,
        "created": now(),
        "expires": now() + lease_time(connection),
    }
    connection.execute(insert(leases).values(values))
    return connection.execute(select(leases).where(leases.c.id == identifier)).one()


def lease_time(connection: Connection) -> timedelta:
    """How long a comparison may stay in a rater's hands without a sign of life."""
    return timedelta(minutes=current_settings(connection)[1].lease_minutes)


def _newest_vote(connection: Connection, account_id: str) -> Row[Any] | None:
    """The vote that an undo opens: the newest of this rater that nothing supersedes, trials left out."""
    later = votes.alias("later")
    condition = (votes.c.account_id == account_id) & (votes.c.purpose != "trial")
    standing = ~exists().where(later.c.supersedes == votes.c.id)
    query = select(votes).where(condition & standing).order_by(votes.c.created.desc(), votes.c.id).limit(1)
    return connection.execute(query).first()


def _lease(connection: Connection, row: Row[Any]) -> Lease:
    columns = (comparisons.c.id, comparisons.c.prompt, comparisons.c.responses, comparisons.c.self_naming)
    item = connection.execute(select(*columns).where(comparisons.c.id == row.comparison_id)).one()
    return Lease(
        id=row.id,
        comparison=Comparison.model_validate({"id": item.id, "prompt": item.prompt, "responses": item.responses}),
        purpose=row.purpose,
        order=tuple(row.order),
        revises=row.revises,
        created=row.created,
        expires=row.expires,
        self_naming=frozenset(item.self_naming),
    )


def open_leases(store: Store) -> int:
    """How many comparisons are in raters' hands now."""
    with store.read() as connection:
        condition = (leases.c.state == "open") & (leases.c.expires >= now())
        return int(connection.execute(select(func.count()).select_from(leases).where(condition)).scalar_one())
