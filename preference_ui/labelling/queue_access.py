"""Whose a queue is: the queues that a rater may have work from now, in which order, and what is refused to others.

Who is not one of a queue's raters neither gets its comparisons, nor opens, votes on, nor changes any of them, whatever
lease or vote is named. A queue that is closed or past its deadline hands nothing out, and its votes stay as they are;
what is in somebody's hands then may still be voted on.
"""

from itertools import groupby
from typing import Any

from sqlalchemy import Connection, Row, select

from preference_ui.store.errors import Refusal
from preference_ui.store.queue_settings import DEFAULT, GENERAL, QueueSettings, current_queue, settled_queues
from preference_ui.store.schema import HAS_ROOM, comparisons, leases
from preference_ui.store.store import Store, now

_FIRST = select(comparisons.c.queue).where(HAS_ROOM).order_by(comparisons.c.queue).limit(1).scalar_subquery()
_NAMES = select(_FIRST.label("queue")).cte("names", recursive=True)
_BEYOND = (
    select(comparisons.c.queue)
    .where(HAS_ROOM & (comparisons.c.queue > _NAMES.c.queue))
    .order_by(comparisons.c.queue)
    .limit(1)
    .correlate(_NAMES)
    .scalar_subquery()
)
_NAMES = _NAMES.union_all(select(_BEYOND).where(_NAMES.c.queue.is_not(None)))
_WITH_ROOM = select(_NAMES.c.queue).where(_NAMES.c.queue.is_not(None))  # a step along an index for each queue


class QueueDesk:
    """The queues as one rater has them, in one transaction."""

    def __init__(self, connection: Connection, account_name: str) -> None:
        self._connection, self._name = connection, account_name
        self._settled = settled_queues(connection)

    def groups(self) -> list[list[str]]:
        """The queues that hand out work to this rater now, those of the highest priority first, equal ones together."""
        moment = now()
        mine = [
            (one.priority, queue)
            for queue in self._connection.execute(_WITH_ROOM).scalars()
            if (one := self._of(queue)).admits(self._name) and one.hands_out(moment)
        ]
        in_order = sorted(mine, key=lambda one: (-one[0], one[1]))
        return [[queue for _priority, queue in group] for _priority, group in groupby(in_order, lambda one: one[0])]

    def may_have(self, queue: str) -> bool:
        """Whether the rater is one of this queue's."""
        return self._of(queue).admits(self._name)

    def withheld(self) -> list[str]:
        """The queues of which this rater gets nothing now, not again either."""
        moment = now()
        return sorted(
            queue for queue, one in self._settled.items() if not (one.admits(self._name) and one.hands_out(moment))
        )

    def of_gold(self, queue: str | None) -> list[str]:
        """The queues whose gold may be mixed into one that the rater works in: its own, and the general one's."""
        return [name for name in dict.fromkeys((queue or DEFAULT, DEFAULT)) if self.may_have(name)]

    def _of(self, queue: str) -> QueueSettings:
        return self._settled.get(queue, GENERAL)


def refuse_others(connection: Connection, account_name: str, lease: Row[Any]) -> None:
    """Raises Refusal where a lease is of a queue that the rater is not one of. A trial is for everybody."""
    if lease.purpose != "trial" and not current_queue(connection, lease.queue)[1].admits(account_name):
        raise Refusal("no_lease", "This comparison is not yours. Please reload the page.")


def refuse_changes(connection: Connection, account_name: str, queue: str) -> None:
    """Raises Refusal where a vote in a queue may not be changed: by this rater, or by nobody any more."""
    settings = current_queue(connection, queue)[1]
    if not settings.admits(account_name):
        raise Refusal("no_vote", "This vote is not yours. Please reload the page.")
    if not settings.hands_out(now()):
        raise Refusal("closed", "This queue is closed, and its votes stay as they are.")


def queues_of(store: Store, account_name: str) -> set[str]:
    """The queues with work that hand it out to this rater now."""
    with store.read() as connection:
        return {queue for group in QueueDesk(connection, account_name).groups() for queue in group}


def in_wrong_hands(connection: Connection, account: Row[Any]) -> list[Row[Any]]:
    """The rater's open leases that :func:`is_withheld`."""
    mine = (leases.c.account_id == account.id) & (leases.c.state == "open")
    found = connection.execute(select(leases).where(mine).with_for_update(key_share=True)).all()
    return [row for row in found if is_withheld(connection, account.name, row)]


def is_withheld(connection: Connection, account_name: str, lease: Row[Any]) -> bool:
    """Whether what a rater has in hand is shown no more: the rater is not one of its queue's any more, or the queue
    has closed and the lease's time is over."""
    if lease.purpose == "trial":
        return False
    settings, moment = current_queue(connection, lease.queue)[1], now()
    return not settings.admits(account_name) or (lease.expires < moment and not settings.hands_out(moment))
