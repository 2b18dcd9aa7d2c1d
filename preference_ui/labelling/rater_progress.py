"""How far a rater has come, and how long the rest will take."""

import statistics
import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, func, select

from preference_ui.labelling import next_comparison
from preference_ui.labelling.queue_access import QueueDesk
from preference_ui.store.schema import HAS_ROOM, accounts, comparisons, leases, votes
from preference_ui.store.store import Store
from preference_ui.store.tallies import queue_tallies_now

_FRESH_SECONDS = 20.0  # how long a rater's reckoning holds
_ROOM_SECONDS = 5.0  # how long the count of what is left to all raters holds
_MINE = (votes.c.account_id == next_comparison.ACCOUNT) & votes.c.purpose.not_in(("trial", "ruling"))
_DONE = select(func.count()).where(_MINE & votes.c.supersedes.is_(None))  # a changed vote counts once: its first
_PACE = select(votes.c.seconds).where(_MINE).order_by(votes.c.created.desc()).limit(15)
_HAD = select(func.count()).select_from(leases.join(comparisons)).where(
    next_comparison.mine("work") & leases.c.revises.is_(None) & HAS_ROOM
    & comparisons.c.queue.in_(bindparam("queues", expanding=True))
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Reckoning:
    """What was counted, when: what was left for a rater who had done ``done``, and the rater's pace in seconds."""

    at: float
    done: int
    left: int
    pace: float | None


class ProgressBook:
    """Each rater's progress. What is left is counted now and then and reckoned on in between."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._room: tuple[float, dict[str, int]] = (float("-inf"), {})  # when counted, what wants more raters where
        self._reckoned: dict[str, _Reckoning] = {}

    def of(self, account_id: str) -> dict[str, Any]:
        """``done`` votes that stand, ``left`` for this rater, ``minutes`` left at the rater's own pace (or None)."""
        room = self._room_left()
        with self.store.read() as connection:
            done = int(connection.execute(_DONE, {"account": account_id}).scalar_one())
            known = self._reckoned.get(account_id)
            if known is None or time.monotonic() - known.at > _FRESH_SECONDS:
                known = self._reckoned[account_id] = self._reckon(connection, account_id, done, room)
        left = max(0, known.left - (done - known.done))
        minutes = None if known.pace is None else round(left * known.pace / 60)
        return {"done": done, "left": left, "minutes": minutes}

    def _room_left(self) -> dict[str, int]:
        """Comparisons of each queue that want more raters, as of a few seconds ago: one count serves all."""
        if time.monotonic() - self._room[0] > _ROOM_SECONDS:
            self._room = (time.monotonic(), self._room[1])  # who asks meanwhile takes the last one
            self._room = (
                time.monotonic(),
                {queue: tally.room for queue, tally in queue_tallies_now(self.store).items() if tally.room},
            )
        return self._room[1]

    def _reckon(self, connection: Connection, account_id: str, done: int, room: dict[str, int]) -> _Reckoning:
        moment = time.monotonic()
        name = connection.execute(select(accounts.c.name).where(accounts.c.id == account_id)).scalar_one()
        mine = [queue for group in QueueDesk(connection, name).groups() for queue in group]
        had = int(connection.execute(_HAD, {"account": account_id, "queues": mine}).scalar_one())
        recent = list(connection.execute(_PACE, {"account": account_id}).scalars())
        pace = statistics.median(recent) if len(recent) >= 3 else None
        return _Reckoning(moment, done, max(0, sum(room.get(queue, 0) for queue in mine) - had), pace)
