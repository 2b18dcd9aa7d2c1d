"""Whether a rater has read the guidelines that hold. Other settings change without anybody having to read again."""

from sqlalchemy import select

from preference_ui.store.schema import settings
from preference_ui.store.settings import DeskSettings
from preference_ui.store.store import Store


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
