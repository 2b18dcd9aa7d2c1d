"""The figures about raters, made no more often than there is something new and never while somebody waits for long."""

import logging
import threading
import time
from typing import Any

from sqlalchemy import func, select

from preference_ui.quality.rater_quality import QualityReport, quality_report
from preference_ui.store.schema import accounts, exclusions, votes
from preference_ui.store.store import Store, StoreError

NEWEST = 5_000  # votes that the figures rest on
AT_ONCE = 500  # votes up to which somebody waits for the figures
WAIT_SECONDS = 1.0  # as long as the figures may have taken the last time, to be made while somebody waits
_log = logging.getLogger(__name__)


class QualityBook:
    """The newest report, renewed in a thread of its own where that takes longer."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._lock = threading.Lock()
        self._report: QualityReport | None = None
        self._of: Any = None  # what the report was made of
        self._seconds: float | None = None  # that it took
        self._renewing = False

    def now(self) -> tuple[QualityReport | None, bool]:
        """The report, and whether a newer one is being made; None where the first is not there yet."""
        newest = self._newest()
        with self._lock:
            if newest == self._of or self._renewing:
                return self._report, self._renewing
            self._renewing = True
            quick = newest[0] <= AT_ONCE if self._seconds is None else self._seconds <= WAIT_SECONDS
        if quick:
            self._renew(newest)
            return self._report, False
        threading.Thread(target=self._renew_quietly, args=(newest,), name="rater-quality", daemon=True).start()
        return self._report, True

    def _renew(self, newest: Any) -> None:
        try:
            begin = time.monotonic()
            report = quality_report(self.store, newest=NEWEST)
            with self._lock:
                self._report, self._of, self._seconds = report, newest, time.monotonic() - begin
        finally:
            self._renewing = False

    def _renew_quietly(self, newest: Any) -> None:
        try:
            self._renew(newest)
        except StoreError as error:
            _log.warning("the figures about raters could not be made: %s", error)

    def _newest(self) -> tuple[int, Any, Any, Any]:
        """What tells one state of the votes and people from another; its first is how many votes there are, nearly."""
        some = select(votes.c.created).order_by(votes.c.created.desc()).limit(AT_ONCE + 1).subquery()
        with self.store.read() as connection:
            return (
                int(connection.execute(select(func.count()).select_from(some)).scalar_one()),
                connection.execute(select(func.max(votes.c.created))).scalar_one(),
                connection.execute(select(func.count()).select_from(exclusions)).scalar_one(),
                connection.execute(select(accounts.c.id, accounts.c.state).order_by(accounts.c.id)).all(),
            )
