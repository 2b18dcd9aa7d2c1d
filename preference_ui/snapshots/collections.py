"""Votes that somebody waits for. A collection is a queue with a condition; when it holds, its votes become a snapshot.

The snapshot is written once and announced at least once: an app that dies in between announces it at its next start,
under the same digest, so that whoever listens can tell a repeat. Waiting takes no compute but one look a while.
"""

import logging
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import Field
from sqlalchemy import case, func, select, update

from alignment.errors import InputError
from alignment.preferences.preference_files import write_votes
from alignment.records import FeedbackKind, Record
from preference_ui.import_export import Export, Filter, read_votes, write_export
from preference_ui.quality.queue_stats import queue_standings, standing_text
from preference_ui.quality.standings import AT_ONCE, bring_up_to_date
from preference_ui.snapshots.prefect_events import send_event
from preference_ui.snapshots.readiness import Lookout, can_be_ready
from preference_ui.store.queue_settings import require_queue_name
from preference_ui.store.schema import collections, comparisons, votes
from preference_ui.store.store import Store, StoreError, insert_if_absent, now, record
from preference_ui.webhooks.outbox import emit

EVENT = "preferences.ready"
_log = logging.getLogger(__name__)
Announce = Callable[[str, Export], None]
Show = Callable[[str], None]
SHOW_SECONDS = 60.0  # between two versions of the queues on the dashboard
STEPS, PAUSE_SECONDS = 10, 0.2  # of bringing the standings up to date, between two looks


class CollectionTarget(Record):
    """When the votes of a queue are enough. All must hold."""

    votes_per_comparison: int = Field(default=1, ge=1)  # on every comparison that counts
    pairs: int = Field(default=1, ge=1)  # or answers, that can be trained on
    min_agreement: float = Field(default=0.5, ge=0, le=1)  # of the votes on a pair, or a thumb, for it to count
    feedback: FeedbackKind = "pairs"


class Collection(Record):
    """A collection as it stands."""

    queue: str
    condition: CollectionTarget
    ready: datetime | None = None
    snapshot: Export | None = None
    announced: datetime | None = None


def open_collection(store: Store, queue: str, condition: CollectionTarget, *, actor: str = "system") -> None:
    """Starts to wait for the votes of a queue. Opened again with another condition, it waits for that one, unless its
    snapshot was taken. Raises InputError for a bad name."""
    require_queue_name(queue)
    with store.write() as connection:
        body = condition.model_dump(mode="json")
        if insert_if_absent(connection, collections, {"queue": queue, "condition": body, "created": now()}):
            record(connection, actor, "collection.open", queue, body)
            return
        row = connection.execute(select(collections).where(collections.c.queue == queue).with_for_update()).one()
        if row.ready is None and CollectionTarget.model_validate(row.condition) != condition:
            connection.execute(update(collections).where(collections.c.queue == queue).values(condition=body))
            wanted = condition.votes_per_comparison
            enough = case((comparisons.c.taken > wanted, comparisons.c.taken), else_=wanted)
            connection.execute(update(comparisons).where(comparisons.c.queue == queue).values(votes_wanted=enough))
            record(connection, actor, "collection.change", queue, body)


def find_collection(store: Store, queue: str) -> Collection | None:
    """The collection of a queue."""
    columns = [collections.c[name] for name in ("queue", "condition", "ready", "snapshot", "announced")]
    with store.read() as connection:
        row = connection.execute(select(*columns).where(collections.c.queue == queue)).mappings().first()
    return None if row is None else Collection.model_validate({str(name): value for name, value in row.items()})


def take_if_ready(store: Store, queue: str, folder: Path, *, lookout: Lookout | None = None) -> Export | None:
    """The snapshot of a queue, taken now where its condition holds; None while votes are missing."""
    found = find_collection(store, queue)
    if found is None:
        return None
    return found.snapshot or _take(store, found, folder, lookout)


def settle_collections(store: Store, folder: Path, announce: Announce, *, lookout: Lookout | None = None) -> list[str]:
    """Takes the snapshot of every collection whose condition holds, and announces what is not yet announced.

    ``folder`` gets one QUEUE.jsonl each. Returns the queues that were announced. What ``announce`` raises is logged,
    and tried again the next time. With a ``lookout``, votes are not read again and again in vain.
    """
    with store.read() as connection:
        names = connection.execute(select(collections.c.queue).where(collections.c.announced.is_(None))).scalars().all()
    announced = []
    for queue in sorted(names):
        snapshot = take_if_ready(store, queue, folder, lookout=lookout)
        if snapshot is None:
            continue
        try:
            announce(queue, snapshot)
        except Exception:  # whatever the receiver's trouble is, the snapshot stays and is announced again
            _log.exception("%s could not be announced", queue)
            continue
        with store.write() as connection:
            connection.execute(update(collections).where(collections.c.queue == queue).values(announced=now()))
            record(connection, "system", "collection.announce", queue, {"digest": snapshot.digest})
        announced.append(queue)
    return announced


def _take(store: Store, collection: Collection, folder: Path, lookout: Lookout | None) -> Export | None:
    condition, begin = collection.condition, time.monotonic()
    tally = can_be_ready(store, collection.queue, condition.votes_per_comparison, condition.pairs, lookout)
    if tally is None:
        return None
    cast = read_votes(store, _counts(collection))
    made = cast.made(condition.feedback, condition.min_agreement)
    if len(made) < condition.pairs:
        if lookout is not None:
            lookout.missed(collection.queue, tally, condition.pairs - len(made), time.monotonic() - begin)
        return None
    if lookout is not None:
        lookout.read.pop(collection.queue, None)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{collection.queue}.jsonl"
    export = write_export(cast, file, condition.feedback, "messages", condition.min_agreement)
    write_votes(records_of(export), made)
    with store.write() as connection:
        waiting = (collections.c.queue == collection.queue) & collections.c.ready.is_(None)
        taken = update(collections).where(waiting).values(ready=now(), snapshot=export.model_dump(mode="json"))
        if connection.execute(taken).rowcount == 0:
            return None  # another process was quicker
        record(connection, "system", "collection.ready", collection.queue, {"digest": export.digest})
        emit(connection, "collection.ready", {"queue": collection.queue, **export.model_dump(exclude={"path"})})
    return export


def _counts(collection: Collection) -> Filter:
    condition = collection.condition
    return Filter(
        queue=collection.queue, min_votes=condition.votes_per_comparison, min_agreement=condition.min_agreement
    )


def records_of(snapshot: Export) -> Path:
    """The file beside a snapshot that holds its pairs, or answers, as records, as the stage reads them."""
    return Path(snapshot.path).with_suffix(f".{snapshot.what}.jsonl")


def announce_to_prefect(queue: str, snapshot: Export) -> None:
    """Sends the Prefect event that starts the next run on exactly this snapshot. Raises like :func:`send_event`."""
    payload = {"queue": queue, **snapshot.model_dump(mode="json")}
    send_event(EVENT, f"rlhf.preferences.{queue}", {"rlhf.digest": snapshot.digest}, payload)


class Watcher(threading.Thread):
    """Looks every ``seconds`` whether a collection has become ready, where a vote came in meanwhile or an
    announcement failed."""

    def __init__(
        self, store: Store, folder: Path, announce: Announce, *, seconds: float = 5.0, show: Show | None = None
    ) -> None:
        super().__init__(name="collections", daemon=True)
        self.store, self.folder, self.announce, self.seconds, self.show = store, folder, announce, seconds, show
        self._shown: tuple[float, Any] = (float("-inf"), None)  # when, and of which newest vote
        self._lookout = Lookout()
        self._stopping = threading.Event()

    def run(self) -> None:
        seen: Any = None
        while not self._stopping.wait(self.seconds):
            try:
                newest = self._newest()
                if newest != seen or self._is_unsaid():
                    settle_collections(self.store, self.folder, self.announce, lookout=self._lookout)
                    seen = None if self._lookout.read else newest  # what was read in vain is read again, in time
                self._show(newest)
                self._bring_up_to_date()
            except (StoreError, InputError) as error:
                _log.warning("collections could not be looked at: %s", error)

    def _bring_up_to_date(self) -> None:
        """Has the standings follow the votes, in steps so short that no rater waits for one."""
        for _ in range(STEPS):
            if bring_up_to_date(self.store, at_most=AT_ONCE) < AT_ONCE or self._stopping.wait(PAUSE_SECONDS):
                return

    def _show(self, newest: Any) -> None:
        """Says how the queues stand, where a vote came in since the last time, at most once a minute."""
        when, of = self._shown
        if self.show is None or newest == of or time.monotonic() - when < SHOW_SECONDS:
            return
        self._shown = (time.monotonic(), newest)
        try:
            self.show(standing_text(queue_standings(self.store, at_most=AT_ONCE)))
        except Exception as error:  # the dashboard may be away; the next minute shows more
            _log.warning("the queues are not on the dashboard: %s", type(error).__name__)

    def stop(self) -> None:
        """Ends the thread."""
        self._stopping.set()
        self.join(timeout=self.seconds + 10)

    def _is_unsaid(self) -> bool:
        unsaid = collections.c.ready.is_not(None) & collections.c.announced.is_(None)
        with self.store.read() as connection:
            return connection.execute(select(collections.c.queue).where(unsaid).limit(1)).first() is not None

    def _newest(self) -> Any:
        with self.store.read() as connection:
            open_now = select(func.count()).select_from(collections).where(collections.c.announced.is_(None))
            newest = connection.execute(select(func.max(votes.c.created))).scalar_one()
            return newest, connection.execute(open_now).scalar_one()
