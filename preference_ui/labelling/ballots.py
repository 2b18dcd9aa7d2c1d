"""Votes as rows to count: who judged what, and how."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, exists, select

from alignment.records import Vote
from preference_ui.labelling.voting import to_record
from preference_ui.store.schema import accounts, comparisons, exclusions, leases, votes


@dataclass(frozen=True, slots=True)
class Ballot:
    """A standing vote with what is needed to judge it."""

    vote: Vote
    account: str
    purpose: str
    order: tuple[str, ...]
    excluded: bool
    correction: Mapping[str, str] | None
    spans: Sequence[dict[str, Any]] | None  # marks of a single answer; empty where there was nothing to mark


def left_out() -> ColumnElement[bool]:
    """Votes that somebody has left out."""
    return exists().where(exclusions.c.vote_id == votes.c.id)


RATED = ("work", "gold", "repeat")  # the purposes of raters' votes but for trials


def read_ballots(
    connection: Connection, *chosen: ColumnElement[bool], purposes: Sequence[str] = RATED, limit: int | None = None
) -> list[Ballot]:
    """Every vote that nothing supersedes, trials and rulings left out, in the order of their times.

    ``chosen`` are conditions on votes, accounts, leases and comparisons; ``limit`` is how many at the most.
    """
    later = votes.alias("later")
    query = (
        select(votes, accounts.c.name, leases.c.order, left_out().label("excluded"))
        .join_from(votes, accounts, votes.c.account_id == accounts.c.id)
        .join(leases, votes.c.lease_id == leases.c.id)
        .join(comparisons, votes.c.comparison_id == comparisons.c.id)
        .where(~exists().where(later.c.supersedes == votes.c.id) & votes.c.purpose.in_(purposes), *chosen)
        .order_by(votes.c.created, votes.c.id)
        .limit(limit)
    )
    return [
        Ballot(to_record(row, row.name), row.account_id, row.purpose, tuple(row.order), bool(row.excluded),
               row.correction, row.spans)
        for row in connection.execute(query)
    ]  # fmt: skip


def read_comparisons(connection: Connection, names: Iterable[str]) -> dict[str, Any]:
    """The rows of some comparisons by their ids, in the order of these; no others are looked at."""
    wanted = sorted(set(names))
    found: dict[str, Any] = {}
    for start in range(0, len(wanted), 500):
        chosen = comparisons.c.id.in_(wanted[start : start + 500])
        found |= {row.id: row for row in connection.execute(select(comparisons).where(chosen))}
    return {name: found[name] for name in wanted if name in found}
