"""Takes the outbox to its webhooks, in a thread with a loop of its own: nobody who votes waits for a receiver.

Each delivery is sent at least once: it leaves the outbox when the receiver has answered with 2xx, and what a process
that ended had in hand is sent again by the next. It is tried :data:`ATTEMPTS` times, each time later, then given up.
"""

import asyncio
import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import httpx
from sqlalchemy import Connection, delete, func, select, update

from preference_ui.store.schema import deliveries, webhooks
from preference_ui.store.store import Store, StoreError, now, record
from preference_ui.webhooks.signature import signed_headers

ATTEMPTS = 10
FIRST_WAIT, LONGEST_WAIT = 10.0, 12 * 3600.0  # seconds; each wait is three times as long as the one before
TIMEOUT = 15.0  # seconds for one attempt, as a whole
AT_ONCE = 20  # deliveries of one webhook
HOLD = timedelta(seconds=AT_ONCE * TIMEOUT + 60)  # what is in hand is in nobody else's for so long
AWAY = frozenset({"no connection", "no answer in time"})
GONE = 410  # the receiver wants to be told no more
_log = logging.getLogger(__name__)
Wait = Callable[[int], float]


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message on its way; ``attempts`` are those that failed before."""

    id: str
    webhook: str
    url: str
    secret: str
    event: str
    body: str
    attempts: int


@dataclass(frozen=True, slots=True)
class AttemptOutcome:
    """What came of an attempt: ``trouble`` is empty where it was taken. ``after``: seconds the receiver asks for."""

    trouble: str = ""
    status: int | None = None
    after: float = 0.0


def retry_wait(failed: int) -> float:
    """Seconds until the next attempt after so many that failed, a tenth more or less: 10, 30, 90 … at most 12 hours."""
    return min(FIRST_WAIT * 3.0 ** (failed - 1), LONGEST_WAIT) * random.uniform(0.9, 1.1)


class Sender(threading.Thread):
    """Looks every ``seconds`` whether something is due, and sends it."""

    def __init__(self, store: Store, *, seconds: float = 2.0, wait: Wait = retry_wait) -> None:
        super().__init__(name="webhooks", daemon=True)
        self.store, self.seconds, self.wait = store, seconds, wait
        self._stopping = threading.Event()

    def run(self) -> None:
        while not self._stopping.wait(self.seconds):
            try:
                while send_due(self.store, self.wait) and not self._stopping.is_set():
                    pass
            except StoreError as error:
                _log.warning("the outbox could not be looked at: %s", error)
            except Exception:  # whatever it was, the outbox stays, and the next look tries again
                _log.exception("the outbox could not be sent")

    def stop(self) -> None:
        """Ends the thread; what is under way is sent again by the next."""
        self._stopping.set()
        self.join(timeout=self.seconds + 3)


def send_due(store: Store, wait: Wait = retry_wait) -> int:
    """Sends what is due now: webhooks side by side, each one's deliveries in turn. Returns how many were in hand."""
    taken = take_due(store)
    if taken:
        asyncio.run(_send(store, taken, wait))
    return sum(map(len, taken))


def take_due(store: Store) -> list[list[Delivery]]:
    """What is due, by webhook, oldest first. Nobody else gets it before :data:`HOLD` is over."""
    moment = now()
    with store.read() as connection:
        due = select(deliveries.c.webhook_id).where(deliveries.c.due <= moment).distinct()
        hooks = sorted(connection.execute(due).scalars())
    taken = []
    for hook in hooks:
        with store.write() as connection:
            taken.append(_take(connection, hook, moment))
    return [some for some in taken if some]


def _take(connection: Connection, hook: str, moment: datetime) -> list[Delivery]:
    query = (
        select(deliveries, webhooks.c.url, webhooks.c.secret)
        .join_from(deliveries, webhooks)
        .where((deliveries.c.webhook_id == hook) & (deliveries.c.due <= moment))
        .order_by(deliveries.c.due, deliveries.c.created)
        .limit(AT_ONCE)
        .with_for_update(of=deliveries, skip_locked=True)
    )
    rows = connection.execute(query).all()
    mine = deliveries.c.id.in_([row.id for row in rows])
    connection.execute(update(deliveries).where(mine).values(due=moment + HOLD))
    return [Delivery(row.id, hook, row.url, row.secret, row.event, row.body, row.attempts) for row in rows]


async def _send(store: Store, taken: Sequence[Sequence[Delivery]], wait: Wait) -> None:
    async with httpx.AsyncClient(follow_redirects=False, timeout=TIMEOUT) as client, asyncio.TaskGroup() as group:
        for some in taken:
            group.create_task(_send_in_turn(store, client, some, wait))


async def _send_in_turn(store: Store, client: httpx.AsyncClient, some: Sequence[Delivery], wait: Wait) -> None:
    away: AttemptOutcome | None = None
    for one in some:
        outcome = away or await _attempt(client, one)
        if outcome.trouble in AWAY:
            away = outcome  # one that is not there is not waited for again and again: all of these count as tried
        await asyncio.to_thread(settle, store, one, outcome, wait)
        if outcome.status == GONE:
            return  # with it the others were given up


async def _attempt(client: httpx.AsyncClient, one: Delivery) -> AttemptOutcome:
    body = one.body.encode()
    headers = signed_headers(one.secret, one.id, int(time.time()), body)
    headers |= {"content-type": "application/json", "user-agent": "rlhf-flows"}
    try:
        async with asyncio.timeout(TIMEOUT), client.stream("POST", one.url, content=body, headers=headers) as answer:
            if answer.is_success:
                return AttemptOutcome()
            asked = answer.headers.get("retry-after", "")
            after = min(float(asked), LONGEST_WAIT) if asked.isascii() and asked.isdigit() else 0.0
            return AttemptOutcome(f"answered {answer.status_code}", answer.status_code, after)
    except (TimeoutError, httpx.TimeoutException):
        return AttemptOutcome("no answer in time")
    except httpx.TransportError:  # its words may hold the address, which may hold a secret
        return AttemptOutcome("no connection")
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        return AttemptOutcome("the request could not be made")


def settle(store: Store, one: Delivery, outcome: AttemptOutcome, wait: Wait) -> None:
    """Writes down what came of an attempt: taken, later again, or given up, which the trail and the log say."""
    failed = one.attempts + 1
    with store.write() as connection:
        here = deliveries.c.id == one.id
        if not outcome.trouble:
            connection.execute(delete(deliveries).where(here))
            connection.execute(update(webhooks).where(webhooks.c.id == one.webhook).values(delivered=now()))
            return
        values: dict[str, Any] = {"attempts": failed, "trouble": outcome.trouble}
        gone = outcome.status == GONE
        if failed < ATTEMPTS and not gone:
            later = now() + timedelta(seconds=max(wait(failed), outcome.after))
            connection.execute(update(deliveries).where(here).values(**values, due=later))
            return
        connection.execute(update(deliveries).where(here).values(**values, due=None))
        detail = {"delivery": one.id, "event": one.event, "attempts": failed, "trouble": outcome.trouble}
        record(connection, "system", "webhook.give_up", one.webhook, detail)
        if gone:
            _close(connection, one.webhook)
    _log.warning("webhook %s: %s (%s) was given up after %d attempts: %s", one.webhook, one.id, one.event, failed,
                 outcome.trouble)  # fmt: skip


def _close(connection: Connection, hook: str) -> None:
    """The receiver said that it is gone: it is told nothing more, and what waits for it is given up."""
    connection.execute(update(webhooks).where(webhooks.c.id == hook).values(gone=func.coalesce(webhooks.c.gone, now())))
    waiting = (deliveries.c.webhook_id == hook) & deliveries.c.due.is_not(None)
    many = connection.execute(update(deliveries).where(waiting).values(due=None, trouble="it is gone")).rowcount
    record(connection, "system", "webhook.gone", hook, {"given_up": many})
