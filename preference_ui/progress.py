"""How far a rater has come, and how long the rest will take."""

import statistics
import time
from typing import Any

from sqlalchemy import exists, func, select

from preference_ui import drawing
from preference_ui.schema import comparisons, votes
from preference_ui.store import Store

_FRESH_SECONDS = 20.0  # counting what is left walks the queue: not for every vote


class ProgressBook:
    """Each rater's progress. ``left`` is counted now and then and reckoned on in between."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._left: dict[str, tuple[float, int, int]] = {}  # account -> when counted, left, done then

    def of(self, account_id: str) -> dict[str, Any]:
        """``done`` votes that stand, ``left`` for this rater, ``minutes`` left at the rater's own pace (or None)."""
        later = votes.alias("later")
        mine = (votes.c.account_id == account_id) & (votes.c.purpose != "trial")
        pace = select(votes.c.seconds).where(mine).order_by(votes.c.created.desc()).limit(15)
        count = select(func.count()).where(mine & ~exists().where(later.c.supersedes == votes.c.id))
        with self.store.read() as connection:
            done = int(connection.execute(count).scalar_one())
            recent = list(connection.execute(pace).scalars())
        left = self._left_for(account_id, done)
        minutes = round(left * statistics.median(recent) / 60) if len(recent) >= 3 else None
        return {"done": done, "left": left, "minutes": minutes}

    def _left_for(self, account_id: str, done: int) -> int:
        counted = self._left.get(account_id)
        if counted is not None and time.monotonic() - counted[0] < _FRESH_SECONDS:
            return max(0, counted[1] - (done - counted[2]))
        room = drawing.eligible(account_id, "work") & (comparisons.c.taken < comparisons.c.votes_wanted)
        with self.store.read() as connection:
            left = int(connection.execute(select(func.count()).select_from(comparisons).where(room)).scalar_one())
        self._left[account_id] = (time.monotonic(), left, done)
        return left
