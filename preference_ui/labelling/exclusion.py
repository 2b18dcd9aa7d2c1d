"""Votes are left out, and brought back, without touching them: a row beside it, or a mark on a talk, says so."""

from sqlalchemy import ColumnElement, Connection, delete, exists, func, insert, select, update

from preference_ui.store.errors import Refusal
from preference_ui.store.schema import accounts, comparisons, exclusions, leases, talks, votes
from preference_ui.store.store import Store, now, record


def exclude_rater(store: Store, account_id: str, *, actor: str, reason: str) -> int:
    """Leaves all of a rater's votes out, and asks others in their place. Returns how many votes."""
    with store.write() as connection:
        name = _name(connection, account_id)
        out = exists().where(exclusions.c.vote_id == votes.c.id)
        found = _votes(connection, account_id, leave_out=out)
        for vote in sorted(found, key=found.__getitem__):  # by comparison, whose counts they change: no deadlock
            row = {"vote_id": vote, "by": actor, "reason": reason[:500], "created": now()}
            connection.execute(insert(exclusions).values(row))
        _recount(connection, set(found.values()))
        changed = len(found) + _mark_talks(connection, account_id, excluded=True)
        record(connection, actor, "votes.exclude", name, {"votes": changed, "reason": reason[:500]})
        return changed


def include_rater(store: Store, account_id: str, *, actor: str) -> int:
    """Brings a rater's votes back. Where others voted in their place, a comparison then has more than it wanted."""
    with store.write() as connection:
        name = _name(connection, account_id)
        found = _votes(connection, account_id, leave_out=~exists().where(exclusions.c.vote_id == votes.c.id))
        connection.execute(delete(exclusions).where(exclusions.c.vote_id.in_(list(found))))
        _recount(connection, set(found.values()))
        changed = len(found) + _mark_talks(connection, account_id, excluded=False)
        record(connection, actor, "votes.include", name, {"votes": changed})
        return changed


def _mark_talks(connection: Connection, account_id: str, *, excluded: bool) -> int:
    """Leaves the rater's talks in the arena out, or brings them back. Returns how many were voted on."""
    voted = (talks.c.account_id == account_id) & (talks.c.state == "voted") & (talks.c.excluded != excluded)
    return connection.execute(update(talks).where(voted).values(excluded=excluded)).rowcount


def _votes(connection: Connection, account_id: str, *, leave_out: ColumnElement[bool]) -> dict[str, str]:
    """A rater's votes: vote id → comparison id."""
    query = select(votes.c.id, votes.c.comparison_id).where((votes.c.account_id == account_id) & ~leave_out)
    return {row.id: row.comparison_id for row in connection.execute(query)}


def _recount(connection: Connection, names: set[str]) -> None:
    """Sets ``taken`` to the raters who hold a place: votes that stand and count, and open leases."""
    for name in sorted(names):  # one order for all: no deadlock
        row = connection.execute(select(comparisons).where(comparisons.c.id == name).with_for_update()).one()
        if row.purpose != "work":
            continue
        later = votes.alias("later")
        counted = (votes.c.comparison_id == name) & (votes.c.purpose == "work") & (votes.c.outcome != "skipped")
        standing = counted & ~exists().where(later.c.supersedes == votes.c.id)
        standing &= ~exists().where(exclusions.c.vote_id == votes.c.id)
        held = (leases.c.comparison_id == name) & (leases.c.state == "open") & leases.c.holds_place
        cast = connection.execute(select(func.count()).select_from(votes).where(standing)).scalar_one()
        open_now = connection.execute(select(func.count()).select_from(leases).where(held)).scalar_one()
        taken = min(row.votes_wanted, cast + open_now)
        connection.execute(update(comparisons).where(comparisons.c.id == name).values(taken=taken))


def _name(connection: Connection, account_id: str) -> str:
    name: str | None = connection.execute(select(accounts.c.name).where(accounts.c.id == account_id)).scalar()
    if name is None:
        raise Refusal("no_account", "There is no such account.")
    return name
