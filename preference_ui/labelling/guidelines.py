"""Whether a rater has read the guidelines that hold. Other settings change without anybody having to read again."""

from dataclasses import dataclass

from sqlalchemy import delete, insert, select

from preference_ui.store.errors import Refusal
from preference_ui.store.queue_settings import QueueSettings, current_queue, text_digest
from preference_ui.store.schema import accounts, queue_readings, settings
from preference_ui.store.settings import DeskSettings
from preference_ui.store.store import Store, now, record


@dataclass(frozen=True, slots=True)
class QueueGuidelines:
    """A queue as it is shown to a rater: its settings, and whether its own guidelines, where it has some, are read."""

    settings: QueueSettings
    digest: str | None
    read: bool


def has_read(store: Store, read: int, version: int, text: str) -> bool:
    """Whether the guidelines that an account has read say the same as those of the newest settings.

    ``read`` is the account's mark: 0 for nothing, else one more than the version of the settings whose guidelines were
    read. ``version`` and ``text`` are the newest settings' own.
    """
    if read > version:
        return True
    if read == 0:
        return False
    if read == 1:  # version 0 are the defaults, which stand in no row
        return DeskSettings().guidelines == text
    with store.read() as connection:
        body = connection.execute(select(settings.c.body).where(settings.c.version == read - 1)).scalar_one_or_none()
    return body is not None and DeskSettings.model_validate(body).guidelines == text


def queue_guidelines(store: Store, account_id: str, queue: str) -> QueueGuidelines:
    """A queue's settings, and whether this rater has read what its guidelines say now."""
    with store.read() as connection:
        settings = current_queue(connection, queue)[1]
        if settings.guidelines is None:
            return QueueGuidelines(settings, None, read=True)
        mine = (queue_readings.c.account_id == account_id) & (queue_readings.c.queue == queue)
        last = connection.execute(select(queue_readings.c.digest).where(mine)).scalar_one_or_none()
    digest = text_digest(settings.guidelines)
    return QueueGuidelines(settings, digest, read=last == digest)


def queue_was_read(store: Store, account_id: str, queue: str, digest: str) -> None:
    """Notes that a rater has read a queue's guidelines. Raises Refusal where they say something else by now, or are
    not for this rater."""
    with store.write() as connection:
        name = connection.execute(select(accounts.c.name).where(accounts.c.id == account_id)).scalar_one()
        settings = current_queue(connection, queue)[1]
        if settings.guidelines is None or text_digest(settings.guidelines) != digest or not settings.admits(name):
            raise Refusal("malformed", "The guidelines have changed meanwhile. Please reload the page.")
        mine = (queue_readings.c.account_id == account_id) & (queue_readings.c.queue == queue)
        connection.execute(delete(queue_readings).where(mine))
        values = {"account_id": account_id, "queue": queue, "digest": digest, "at": now()}
        connection.execute(insert(queue_readings).values(values))
        record(connection, name, "guidelines.read", queue, {"digest": digest})
