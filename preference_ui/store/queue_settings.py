"""What an administrator decides about one queue. Where it says nothing for itself, the general settings hold."""

import hashlib
import re
from collections.abc import Collection
from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, field_validator, model_validator
from sqlalchemy import Connection, case, func, insert, select, update

from alignment.errors import Fault, InputError
from preference_ui.store.schema import accounts, comparisons, queue_settings
from preference_ui.store.settings import Criterion, DeskSettings, SpanLabel, different_names
from preference_ui.store.store import Store, now, record
from preference_ui.store.tallies import queue_tallies_now

QUEUE_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
DEFAULT = "default"
AT_ONCE = 1_000  # comparisons of one transaction, where their wanted votes change
Single = Literal["thumbs", "rewrites", "scores", "spans"]
Rater = Annotated[str, Field(min_length=1, max_length=64)]


class QueueSettings(BaseModel):
    """How one queue is handed out, to whom, and what its raters are asked. None: as the general settings say."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    guidelines: str | None = Field(default=None, max_length=20_000)
    criteria: tuple[Criterion, ...] | None = Field(default=None, max_length=8)
    votes_wanted: int | None = Field(default=None, ge=1, le=1_000)  # of each comparison; None: as it was queued
    raters: tuple[Rater, ...] = Field(default=(), max_length=10_000)  # names of accounts; empty: everybody
    priority: int = Field(default=0, ge=-1_000, le=1_000)  # the highest that has work for a rater comes first
    deadline: AwareDatetime | None = None  # after it nothing is handed out
    open: bool = True
    single: Single = "thumbs"  # what is asked of an answer that stands alone
    labels: tuple[SpanLabel, ...] = Field(default=(), max_length=9)  # of parts of it, where ``single`` is spans

    @field_validator("criteria")
    @classmethod
    def _names_differ(cls, value: tuple[Criterion, ...] | None) -> tuple[Criterion, ...] | None:
        return None if value is None else different_names(value)

    @field_validator("labels")
    @classmethod
    def _labels_differ(cls, value: tuple[SpanLabel, ...]) -> tuple[SpanLabel, ...]:
        return different_names(value, "labels")

    @model_validator(mode="after")
    def _has_what_it_asks_for(self) -> Self:
        """Raises ValueError where scores or marks are asked for, and by what is not said."""
        if self.single == "scores" and not self.criteria:
            raise ValueError("scores of single answers need the queue's own criteria")
        if (self.single == "spans") != bool(self.labels):
            raise ValueError("spans need labels, and labels are for spans alone")
        return self

    @field_validator("raters")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted({name.strip().lower() for name in value}))

    def admits(self, name: str) -> bool:
        """Whether this account is one of the queue's raters."""
        return not self.raters or name in self.raters

    def hands_out(self, moment: datetime) -> bool:
        """Whether its comparisons are handed out at this time, and its votes may be changed."""
        return self.open and (self.deadline is None or moment < self.deadline)

    def desk(self, general: DeskSettings) -> DeskSettings:
        """The general settings, with what this queue says for itself."""
        own = {"guidelines": self.guidelines, "criteria": self.criteria}
        return general.model_copy(update={name: value for name, value in own.items() if value is not None})


GENERAL = QueueSettings()  # of a queue without settings of its own


def current_queue(connection: Connection, queue: str) -> tuple[int, QueueSettings]:
    """The version and the newest settings of a queue, as this transaction sees them; version 0 is :data:`GENERAL`."""
    newest = select(queue_settings).where(queue_settings.c.queue == queue)
    row = connection.execute(newest.order_by(queue_settings.c.version.desc()).limit(1)).first()
    return (0, GENERAL) if row is None else (row.version, QueueSettings.model_validate(row.body))


def settled_queues(connection: Connection) -> dict[str, QueueSettings]:
    """The newest settings of every queue that has its own, by name."""
    later = queue_settings.alias("later")
    newest = select(func.max(later.c.version)).where(later.c.queue == queue_settings.c.queue).scalar_subquery()
    query = select(queue_settings.c.queue, queue_settings.c.body).where(queue_settings.c.version == newest)
    return {row.queue: QueueSettings.model_validate(row.body) for row in connection.execute(query)}


def barred_queues(connection: Connection, account_name: str) -> list[str]:
    """The queues whose raters this account is not one of."""
    return sorted(name for name, one in settled_queues(connection).items() if not one.admits(account_name))


def change_queue(store: Store, queue: str, body: QueueSettings, *, author: str, seen: int | None = None) -> int:
    """Stores new settings of a queue as its next version. Returns the version.

    Where ``votes_wanted`` is new, every comparison of the queue wants so many from now on, or as many as it has. With
    ``seen``, the version that the author has looked at, a change that somebody made meanwhile is not overwritten.
    Raises InputError for a name that no queue can have, for raters that are no account, and for such a change.
    """
    require_queue_name(queue)
    with store.write() as connection:
        version, before = current_queue(connection, queue)
        if seen is not None and seen != version:
            problem = f"somebody else has changed {queue} meanwhile"
            raise InputError([Fault(problem, "look at it again, then change it", field="version")])
        _require_accounts(connection, set(body.raters) - set(before.raters))
        values = {"queue": queue, "version": version + 1, "created": now(), "author": author}
        connection.execute(insert(queue_settings).values(values | {"body": body.model_dump(mode="json")}))
        changed = [name for name in QueueSettings.model_fields if getattr(body, name) != getattr(before, name)]
        record(connection, author, "queue.change", queue, {"version": version + 1, "changed": changed})
    if body.votes_wanted is not None and body.votes_wanted != before.votes_wanted:
        _want(store, queue, body.votes_wanted)
    return version + 1


def require_queue_name(queue: str) -> None:
    """Raises InputError for a bad name."""
    if not QUEUE_NAME.fullmatch(queue):
        raise InputError([Fault(f"{queue!r} is no name of a queue", "use small letters, digits, dots and dashes")])


def text_digest(text: str) -> str:
    """By which it is known which text somebody has read."""
    return hashlib.sha256(text.encode()).hexdigest()


def _require_accounts(connection: Connection, names: Collection[str]) -> None:
    known = set(connection.execute(select(accounts.c.name).where(accounts.c.name.in_(sorted(names)))).scalars())
    if missing := sorted(set(names) - known):
        faults = [Fault(f"there is no account {name}", "see `rlhf raters list`", field="raters") for name in missing]
        raise InputError(faults)


def _want(store: Store, queue: str, votes: int) -> None:
    """Changes what the comparisons of a queue want, some at a time: raters go on meanwhile."""
    here = (comparisons.c.queue == queue) & (comparisons.c.purpose == "work")
    last = ""
    while True:
        page = select(comparisons.c.id).where(here & (comparisons.c.id > last)).order_by(comparisons.c.id)
        with store.write() as connection:
            names = connection.execute(page.limit(AT_ONCE)).scalars().all()
            other = comparisons.c.id.in_(names) & (comparisons.c.votes_wanted != votes)
            enough = case((comparisons.c.taken > votes, comparisons.c.taken), else_=votes)
            connection.execute(update(comparisons).where(other).values(votes_wanted=enough))
        queue_tallies_now(store)  # folds what the change left in the ledger, while that takes no time
        if len(names) < AT_ONCE:
            return
        last = names[-1]
