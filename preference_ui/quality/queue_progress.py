"""The queues as an administrator sees them: their settings, how far they are, how long the rest takes, what it cost."""

from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from sqlalchemy import ColumnElement, func, select

from alignment.records import Record
from preference_ui.quality.work_time import hours_by_queue, work_times
from preference_ui.store.queue_settings import GENERAL, QueueSettings, settled_queues
from preference_ui.store.schema import comparisons, votes
from preference_ui.store.store import Store, current_settings, now
from preference_ui.store.tallies import QueueTally, queue_tallies_now

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
BY_THE_HOUR = timedelta(days=4)  # votes over a longer time are counted by the day
_COUNTED: ColumnElement[bool] = (
    (votes.c.purpose == "work") & (votes.c.outcome != "skipped") & votes.c.supersedes.is_(None)
)


class QueueProgress(Record):
    """One queue. ``given`` are the votes that stand, no more of a comparison than it wants."""

    queue: str
    state: str  # open | closed | over (its deadline)
    priority: int
    deadline: datetime | None
    raters: tuple[str, ...]  # empty: everybody
    comparisons: int
    complete: int
    wanted: int
    given: int
    an_hour: float  # votes at the current rate: of the last hour, or else of the last day
    hours_left: float | None  # at that rate; None where nobody votes
    hours_worked: float
    cost: float | None  # of the hours worked; None without a rate


def queue_progress(store: Store) -> list[QueueProgress]:
    """Every queue that has comparisons or settings of its own, those that come first at the top."""
    tallies = queue_tallies_now(store)
    with store.read() as connection:
        settled, settings = settled_queues(connection), current_settings(connection)[1]
    hours = hours_by_queue(work_times(store, idle_minutes=settings.idle_minutes))
    rates = _rates(store)
    names = {name for name, tally in tallies.items() if tally.comparisons} | set(settled)
    found = [
        _line(name, settled.get(name, GENERAL), tallies.get(name, QueueTally()), rates.get(name, 0.0),
              hours.get(name, 0.0), settings.hourly_rate)
        for name in names
    ]  # fmt: skip
    return sorted(found, key=lambda one: (one.state != "open", -one.priority, one.queue))


def _line(
    name: str, settings: QueueSettings, tally: QueueTally, an_hour: float, hours: float, hourly_rate: float
) -> QueueProgress:
    over = settings.open and not settings.hands_out(now())
    left = max(0, tally.wanted - tally.filled)
    return QueueProgress(
        queue=name, state="over" if over else "open" if settings.open else "closed", priority=settings.priority,
        deadline=settings.deadline, raters=settings.raters, comparisons=tally.comparisons, complete=tally.complete,
        wanted=tally.wanted, given=tally.filled, an_hour=an_hour,
        hours_left=left / an_hour if an_hour else 0.0 if left == 0 else None, hours_worked=hours,
        cost=hours * hourly_rate if hourly_rate else None,
    )  # fmt: skip


def _rates(store: Store) -> dict[str, float]:
    """Votes an hour in each queue."""
    moment = now()
    day, hour = (_since(store, moment - span) for span in (DAY, HOUR))
    return {queue: float(hour.get(queue) or count / 24) for queue, count in day.items()}


def _since(store: Store, moment: datetime) -> Mapping[str, int]:
    query = select(comparisons.c.queue, func.count()).join_from(votes, comparisons)
    query = query.where(_COUNTED & (votes.c.created >= moment)).group_by(comparisons.c.queue)
    with store.read() as connection:
        return {row[0]: int(row[1]) for row in connection.execute(query)}


def votes_over_time(store: Store, queue: str | None = None) -> list[tuple[datetime, str, int]]:
    """Votes of each hour (of each day, where there are more than four), by time and queue: of one queue or of all."""
    stamp = votes.c.created
    hour = func.strftime("%Y-%m-%dT%H", stamp) if store.is_sqlite else func.to_char(
        func.timezone("UTC", stamp), 'YYYY-MM-DD"T"HH24'
    )  # fmt: skip
    query = select(hour.label("hour"), comparisons.c.queue, func.count().label("votes"))
    query = query.join_from(votes, comparisons).where(_COUNTED).group_by(hour, comparisons.c.queue)
    if queue is not None:
        query = query.where(comparisons.c.queue == queue)
    with store.read() as connection:
        rows = connection.execute(query).all()
    counted: dict[tuple[datetime, str], int] = defaultdict(int)
    moments = [datetime.strptime(row.hour, "%Y-%m-%dT%H").replace(tzinfo=UTC) for row in rows]
    by_day = bool(moments) and max(moments) - min(moments) > BY_THE_HOUR
    for moment, row in zip(moments, rows, strict=True):
        counted[moment.replace(hour=0) if by_day else moment, row.queue] += row.votes
    return sorted((moment, name, count) for (moment, name), count in counted.items())
