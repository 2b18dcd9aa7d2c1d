"""A rater's own votes, to look at and to change. A vote that is open again holds until another supersedes it."""

from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, delete, exists, select, true, update

from preference_ui.labelling.assignment import (
    Lease,
    give_back,
    insert_lease,
    lock_rater,
    read_lease,
    take_place,
)
from preference_ui.labelling.queue_access import refuse_changes
from preference_ui.labelling.voting import as_wire
from preference_ui.store.errors import Refusal
from preference_ui.store.queue_settings import barred_queues
from preference_ui.store.schema import accounts, comparisons, drafts, exclusions, leases, votes
from preference_ui.store.store import Store, current_settings

PAGE = 30  # votes that are listed at once
_NOT_WORK = ("trial", "ruling")  # votes that are no work of a rater's: nobody goes back to them
EXCERPT = 200  # characters of a question in the list


def own_votes(store: Store, account_id: str, before: str | None = None) -> list[dict[str, Any]]:
    """A page of the rater's standing votes, newest first, trials left out: those cast before the vote ``before``.

    Votes in queues that the rater is not one of any more are left out too. ``verdict`` is as the browser would send it;
    ``fixed`` says that an administrator has set the vote aside.
    """
    with store.read() as connection:
        name = connection.execute(select(accounts.c.name).where(accounts.c.id == account_id)).scalar_one_or_none() or ""
        query = (
            select(votes, comparisons.c.prompt, exists().where(exclusions.c.vote_id == votes.c.id).label("fixed"))
            .join_from(votes, comparisons, votes.c.comparison_id == comparisons.c.id)
            .where(_standing(account_id) & _admitted(connection, name))
        )
        if before is not None:
            last = _own(connection, account_id, before)
            query = query.where(_earlier(last))
        rows = connection.execute(query.order_by(votes.c.created.desc(), votes.c.id.desc()).limit(PAGE)).all()
        return [
            {"vote": row.id, "at": row.created.isoformat(timespec="seconds"), "fixed": bool(row.fixed),
             "question": row.prompt["messages"][-1]["content"][:EXCERPT], "verdict": as_wire(connection, row)}
            for row in rows
        ]  # fmt: skip


def reopen(store: Store, account_id: str, vote_id: str | None = None) -> Lease:
    """Opens a vote of the rater's again: the one named, else the newest. Another that was open is left as it was.

    Raises Refusal where there is nothing to undo or it can no longer be changed.
    """
    with store.write() as connection:
        account = lock_rater(connection, account_id)
        if vote_id is not None:
            return _open(connection, account, _own(connection, account_id, vote_id))
        return _open(connection, account, _newest(connection, account, _standing(account_id)))


def reopen_earlier(store: Store, account_id: str, lease_id: str) -> Lease:
    """Goes one vote further back from the one that ``lease_id`` has open. Raises Refusal where it is the first."""
    with store.write() as connection:
        account = lock_rater(connection, account_id)
        lease = _revising(connection, account_id, lease_id)
        vote = _own(connection, account_id, lease.revises)
        return _open(connection, account, _newest(connection, account, _standing(account_id) & _earlier(vote)))


def leave(store: Store, account_id: str, lease_id: str) -> None:
    """Closes a vote that was open again; it stays what it was. Doing so again changes nothing."""
    with store.write() as connection:
        lock_rater(connection, account_id)
        lease = _revising(connection, account_id, lease_id)
        if lease.state == "open":
            _close(connection, lease)


def _standing(account_id: str) -> ColumnElement[bool]:
    later = votes.alias("later")
    mine: ColumnElement[bool] = (votes.c.account_id == account_id) & votes.c.purpose.not_in(_NOT_WORK)
    return mine & ~exists().where(later.c.supersedes == votes.c.id)


def _admitted(connection: Connection, account_name: str) -> ColumnElement[bool]:
    """Votes in queues that this rater is one of."""
    barred = barred_queues(connection, account_name)
    if not barred:
        return true()
    return ~exists().where((leases.c.id == votes.c.lease_id) & leases.c.queue.in_(barred))


def _earlier(vote: Row[Any]) -> ColumnElement[bool]:
    same: ColumnElement[bool] = (votes.c.created == vote.created) & (votes.c.id < vote.id)
    older: ColumnElement[bool] = votes.c.created < vote.created
    return older | same


def _newest(connection: Connection, account: Row[Any], condition: ColumnElement[bool]) -> Row[Any]:
    query = select(votes).where(condition & _admitted(connection, account.name))
    newest = query.order_by(votes.c.created.desc(), votes.c.id.desc()).limit(1)
    row: Row[Any] | None = connection.execute(newest).first()
    if row is None:
        raise Refusal("nothing_to_undo", "There is no vote to undo yet.")
    return row


def _own(connection: Connection, account_id: str, vote_id: Any) -> Row[Any]:
    if not isinstance(vote_id, str) or len(vote_id) > 32:
        raise Refusal("no_vote", "This vote is not yours. Please reload the page.")
    mine = (votes.c.id == vote_id) & (votes.c.account_id == account_id) & votes.c.purpose.not_in(_NOT_WORK)
    row: Row[Any] | None = connection.execute(select(votes).where(mine)).first()
    if row is None:  # another's vote and one that never was get the same answer
        raise Refusal("no_vote", "This vote is not yours. Please reload the page.")
    return row


def _revising(connection: Connection, account_id: str, lease_id: Any) -> Row[Any]:
    if not isinstance(lease_id, str) or len(lease_id) > 64:
        raise Refusal("no_lease", "This comparison is not yours. Please reload the page.")
    mine = (leases.c.id == lease_id) & (leases.c.account_id == account_id) & leases.c.revises.is_not(None)
    row: Row[Any] | None = connection.execute(select(leases).where(mine)).first()
    if row is None:
        raise Refusal("no_lease", "This comparison is not yours. Please reload the page.")
    return row


def _open(connection: Connection, account: Row[Any], vote: Row[Any]) -> Lease:
    account_id = account.id
    shown = connection.execute(select(leases.c.order, leases.c.queue).where(leases.c.id == vote.lease_id)).one()
    refuse_changes(connection, account.name, shown.queue)
    if connection.execute(select(votes.c.id).where(votes.c.supersedes == vote.id)).first() is not None:
        raise Refusal("over", "This vote was already changed elsewhere. Please reload the page.")
    if connection.execute(select(exclusions).where(exclusions.c.vote_id == vote.id)).first() is not None:
        raise Refusal("excluded", "This vote was set aside by an administrator and can no longer be changed.")
    mine = (leases.c.account_id == account_id) & (leases.c.state == "open") & leases.c.revises.is_not(None)
    other = connection.execute(select(leases).where(mine)).first()
    if other is not None and other.revises == vote.id:
        return read_lease(connection, other)
    if other is not None:
        _close(connection, other)
    takes = vote.purpose == "work" and vote.outcome == "skipped"  # a skip gave its place away
    if takes and not take_place(connection, vote.comparison_id):
        raise Refusal("finished_by_others", "You skipped this one, and others have finished it in the meantime.")
    settings = current_settings(connection)[1]
    row = insert_lease(connection, settings, account_id, vote.comparison_id, vote.purpose, shown.order, "undo", takes,
                       vote.id, queue=shown.queue)  # fmt: skip
    return read_lease(connection, row)


def _close(connection: Connection, lease: Row[Any]) -> None:
    connection.execute(delete(drafts).where(drafts.c.lease_id == lease.id))
    closed = update(leases).where(leases.c.id == lease.id).values(state="expired", holds_place=False)
    connection.execute(closed)
    if lease.holds_place:
        give_back(connection, lease.comparison_id)
