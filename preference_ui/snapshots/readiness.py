"""Whether a collection can be ready at all, out of counts: all its votes are read only where it can."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from sqlalchemy import func, select

from preference_ui.store.schema import comparisons
from preference_ui.store.store import Store
from preference_ui.store.tallies import QueueTally, queue_tallies_now

MOST_PAIRS = 36  # of one comparison: it has nine answers at the most
SHORT_SECONDS = 0.05  # reading that takes no longer is done at every look
COUNT_SECONDS = 60.0  # comparisons are counted again after so long, whatever was reckoned
_OFTEN, _SELDOM = 20, 100  # times as long as the reading took: with votes enough for what was short, and without


@dataclass(slots=True)
class _Miss:
    """What a look found missing: ``votes`` more at the least, where the queue had ``judged`` (the fewest since)."""

    judged: int
    votes: int
    at: float
    seconds: float = 0.0


@dataclass(slots=True)
class Lookout:
    """What one watcher remembers of the collections that were not ready. Without one, every look counts and reads."""

    clock: Callable[[], float] = time.monotonic
    counted: dict[str, _Miss] = field(default_factory=dict)
    read: dict[str, _Miss] = field(default_factory=dict)

    def missed(self, queue: str, tally: QueueTally, pairs: int, seconds: float) -> None:
        """Notes that reading the votes, for so many ``seconds``, found ``pairs`` too few."""
        votes = -(-pairs // (_pairs_each(tally) + 1))  # a vote may carry a correction, which is one more
        self.read[queue] = _Miss(tally.judged, votes, self.clock(), seconds)


def can_be_ready(store: Store, queue: str, votes: int, pairs: int, lookout: Lookout | None = None) -> QueueTally | None:
    """The queue's counts, where ``pairs`` of comparisons with ``votes`` each are possible and worth looking for.

    A pair needs a comparison with enough votes, or a correction. Never None without a ``lookout`` where the collection
    is ready; with one, at most some time after it became so: a hundredth of the time goes into reading in vain, a
    twentieth where there are votes enough for what was missing.
    """
    tally = queue_tallies_now(store).get(queue, QueueTally())
    needed = -(-(pairs - tally.corrections) // _pairs_each(tally))  # comparisons
    if tally.judged // votes < needed:
        return None
    if lookout is None:
        return tally if _complete(store, queue, votes, needed) >= needed else None
    return tally if _counted(store, queue, votes, needed, tally, lookout) and _due(queue, tally, lookout) else None


def _pairs_each(tally: QueueTally) -> int:
    return MOST_PAIRS if tally.wide else 1


def _counted(store: Store, queue: str, votes: int, needed: int, tally: QueueTally, lookout: Lookout) -> bool:
    miss, moment = lookout.counted.get(queue), lookout.clock()
    if miss is not None:
        miss.judged = min(miss.judged, tally.judged)  # votes that were left out may come back
        if tally.judged - miss.judged < miss.votes and moment - miss.at < COUNT_SECONDS:
            return False
    there = _complete(store, queue, votes, needed)
    lookout.counted[queue] = _Miss(tally.judged, needed - there, moment)
    return there >= needed


def _due(queue: str, tally: QueueTally, lookout: Lookout) -> bool:
    miss = lookout.read.get(queue)
    if miss is None or miss.seconds <= SHORT_SECONDS:
        return True
    miss.judged = min(miss.judged, tally.judged)
    enough = tally.judged - miss.judged >= miss.votes
    return lookout.clock() - miss.at >= miss.seconds * (_OFTEN if enough else _SELDOM)


def _complete(store: Store, queue: str, votes: int, needed: int) -> int:
    """How many comparisons have so many votes, counted no further than is needed."""
    if needed <= 0:
        return 0
    fits = (comparisons.c.queue == queue) & (comparisons.c.judged >= votes)
    some = select(comparisons.c.judged).where(fits).limit(needed).subquery()
    with store.read() as connection:
        return int(connection.execute(select(func.count()).select_from(some)).scalar_one())
