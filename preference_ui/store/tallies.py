"""How many there are of what in each queue, as sums of a short ledger. Triggers write it (see the sixth migration).

A trigger adds a row for each change and never touches another, so that nobody who votes waits for anybody. Rows are
folded into one for each queue and account where there are many; readers see the same sums before, meanwhile and after.
"""

from collections import defaultdict
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, text

from preference_ui.store.schema import TALLIED, queue_tallies
from preference_ui.store.store import Store

FOLD_AT = 2_000  # rows: a sum over so many takes a millisecond
_NUMBERS = (*TALLIED, "apart")
_KEY = (queue_tallies.c.queue, queue_tallies.c.account_id)
_SUMS = select(*_KEY, *(func.sum(queue_tallies.c[name]).label(name) for name in _NUMBERS),
               func.count().label("rows")).group_by(*_KEY)  # fmt: skip
_FOLD_LOCK = 0x726C6867  # any number that only this app takes


@dataclass(slots=True)
class QueueTally:
    """A queue's counts. What is withdrawn counts in ``judged``, ``wide`` and what follows from votes, nowhere else."""

    comparisons: int = 0  # of real work
    wanted: int = 0  # votes
    taken: int = 0  # votes and open leases
    room: int = 0  # comparisons that want more raters
    complete: int = 0  # comparisons with all their votes
    filled: int = 0  # votes that stand, no more of a comparison than it wanted
    judged: int = 0  # votes that stand, skips and what is left out not among them
    wide: int = 0  # comparisons of more than two answers
    votes: int = 0  # ever cast on real work, skips not among them
    given: int = 0  # ever cast by raters, trials not among them
    corrections: int = 0
    units: int = 0  # pairs of answers that two raters or more have rated, and of those the ratings of each kind
    first: int = 0
    second: int = 0
    ties: int = 0
    both_bad: int = 0
    apart: float = 0.0  # Krippendorff's observed disagreement, times the ratings
    raters: int = 0  # accounts with votes


def queue_tallies_now(store: Store) -> dict[str, QueueTally]:
    """Every queue that ever had a comparison, by name. Folds the ledger where it has grown long."""
    with store.read() as connection:
        found, rows = _read(connection)
    if rows > FOLD_AT:
        fold(store)
    return found


def total(store: Store, name: str) -> int:
    """One count over all queues."""
    return sum(int(getattr(tally, name)) for tally in queue_tallies_now(store).values())


def fold(store: Store) -> int:
    """Replaces the ledger's rows by one a queue and account. Returns how many there were; 0 where another folds now."""
    with store.write() as connection:
        if not alone(connection, _FOLD_LOCK):
            return 0
        sums: dict[tuple[str, str], dict[str, float]] = defaultdict(lambda: dict.fromkeys(_NUMBERS, 0))
        rows = connection.execute(delete(queue_tallies).returning(*queue_tallies.c)).all()
        for row in rows:
            kept = sums[row.queue, row.account_id]
            for name in _NUMBERS:
                kept[name] += getattr(row, name)
        folded = [{"queue": queue, "account_id": account} | kept for (queue, account), kept in sums.items()]
        if folded:
            connection.execute(insert(queue_tallies), folded)
        return len(rows)


def alone(connection: Connection, number: int) -> bool:
    """Whether no other transaction has said the same number; SQLite has one writer at a time anyway."""
    if connection.dialect.name != "postgresql":
        return True
    return bool(connection.execute(text("SELECT pg_try_advisory_xact_lock(:n)"), {"n": number}).scalar_one())


def _read(connection: Connection) -> tuple[dict[str, QueueTally], int]:
    found: dict[str, QueueTally] = {}
    rows = 0
    for row in connection.execute(_SUMS):
        rows += row.rows
        tally: Any = found.setdefault(row.queue, QueueTally())
        for name in _NUMBERS:
            setattr(tally, name, getattr(tally, name) + getattr(row, name))
        tally.raters += bool(row.account_id) and row.votes > 0
    return found, rows


assert {field.name for field in fields(QueueTally)} == {*_NUMBERS, "raters"}
