"""Votes as rows to count: who judged what, and how."""

from dataclasses import dataclass

from sqlalchemy import Connection, exists, select

from alignment.records import Vote
from preference_ui.labelling.voting import to_record
from preference_ui.store.schema import accounts, exclusions, leases, votes


@dataclass(frozen=True, slots=True)
class Ballot:
    """A standing vote with what is needed to judge it."""

    vote: Vote
    account: str
    purpose: str
    order: tuple[str, ...]
    excluded: bool


def read_ballots(connection: Connection) -> list[Ballot]:
    """Every vote that nothing supersedes, trials left out, in the order of their times."""
    later = votes.alias("later")
    out = exists().where(exclusions.c.vote_id == votes.c.id).label("excluded")
    query = (
        select(votes, accounts.c.name, leases.c.order, out)
        .join_from(votes, accounts, votes.c.account_id == accounts.c.id)
        .join(leases, votes.c.lease_id == leases.c.id)
        .where(~exists().where(later.c.supersedes == votes.c.id) & (votes.c.purpose != "trial"))
        .order_by(votes.c.created, votes.c.id)
    )
    return [
        Ballot(to_record(row, row.name), row.account_id, row.purpose, tuple(row.order), bool(row.excluded))
        for row in connection.execute(query)
    ]
