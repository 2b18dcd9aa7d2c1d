"""How long raters have worked, by the times of their leases.

Work on a vote runs from the moment its comparison was handed out to the moment of the vote, and is cut to the last
``idle`` seconds of that: who leaves the page open is not paid for the night. Times that overlap count once, such as a
vote that was changed while another comparison was open. Every vote counts, also trials, gold, repeats and skips, which
are work like all other; rulings of an administrator do not.
"""

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime

from sqlalchemy import select

from alignment.records import Record
from preference_ui.store.schema import accounts, leases, votes
from preference_ui.store.store import Store

_ROWS = (
    select(accounts.c.name, leases.c.queue, leases.c.created.label("began"), votes.c.created.label("ended"))
    .join_from(votes, leases, votes.c.lease_id == leases.c.id)
    .join(accounts, votes.c.account_id == accounts.c.id)
    .where(votes.c.purpose != "ruling")
    .order_by(votes.c.account_id, votes.c.created, votes.c.id)
)
Span = tuple[float, float]


class WorkTime(Record):
    """What one rater has done in one queue."""

    rater: str
    queue: str
    votes: int
    seconds: float
    first: datetime
    last: datetime

    @property
    def hours(self) -> float:
        """Active hours."""
        return self.seconds / 3600


def work_times(store: Store, *, idle_minutes: float) -> list[WorkTime]:
    """Every rater's work in every queue, by rater and queue. Times that overlap count where the first of them ended."""
    idle = idle_minutes * 60
    found: dict[tuple[str, str], list[tuple[datetime, float]]] = defaultdict(list)
    with store.read() as connection:
        covered: list[Span] = []
        of = None
        for name, queue, began, ended in connection.execute(_ROWS):
            if name != of:
                of, covered = name, []
            end = ended.timestamp()
            start = max(min(began.timestamp(), end), end - idle)
            found[name, queue].append((ended, cover(covered, (start, end))))
    return [
        WorkTime(rater=name, queue=queue, votes=len(done), seconds=sum(seconds for _at, seconds in done),
                 first=done[0][0], last=done[-1][0])
        for (name, queue), done in sorted(found.items())
    ]  # fmt: skip


def cover(covered: list[Span], span: Span) -> float:
    """Adds a span to those covered, which are apart, in order, and end no later than it does. Returns what is new of
    it, in the spans' unit."""
    start, end = span
    new = end - start
    while covered and covered[-1][1] > start:
        first, last = covered.pop()
        new -= last - max(first, start)
        start = min(first, start)
    covered.append((start, end))
    return new


def hours_by_queue(times: Iterable[WorkTime]) -> dict[str, float]:
    """Active hours of all raters in each queue."""
    hours: dict[str, float] = defaultdict(float)
    for one in times:
        hours[one.queue] += one.hours
    return dict(hours)
