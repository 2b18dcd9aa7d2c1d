"""What only shows a run (artifacts on the dashboard, names, progress) is sent from a thread of its own.

A stage never waits for it, and whatever goes wrong with it is logged and forgotten: the report and the artifacts have
all of it. While the server is away nothing is kept for it but the newest of each kind.
"""

import atexit
import contextvars
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from flows.services.http_client import UnreachableError, ask, prefect_headers

_log = logging.getLogger(__name__)
MOST = 100  # jobs that wait; the oldest is forgotten first
END_SECONDS = 8.0  # for what is left at the end of a run
HEALTH_SECONDS = 10.0


def server_answers(seconds: float = HEALTH_SECONDS) -> bool:
    """Whether the Prefect server that this process uses answers. One that refuses the connection is known at once."""
    from prefect.settings import get_current_settings

    url = get_current_settings().api.url
    if not url:
        return False
    try:
        return ask(f"{url}/health", headers=prefect_headers(), timeout=seconds).status < 500
    except UnreachableError:
        return False


def server_writes(flow_run: str | None, seconds: float = HEALTH_SECONDS) -> bool:
    """Whether the server takes what it is told: while its database is locked, or its disk full, it still answers.

    What it is told of the run changes nothing but the time at which it was told.
    """
    from prefect.settings import get_current_settings

    url = get_current_settings().api.url
    if not url or not flow_run:
        return False
    place = f"{url}/flow_runs/{flow_run}"
    try:
        return ask(place, method="PATCH", body={}, headers=prefect_headers(), timeout=seconds).status < 500
    except UnreachableError:
        return False


class BackgroundSender:
    """Jobs that are done one after the other in one thread, the newest of each key."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[str, tuple[contextvars.Context, Callable[[], None]]] = OrderedDict()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._busy = False
        self._failed = ""
        self._number = 0

    def later(self, job: Callable[[], None], key: str = "") -> None:
        """Does ``job`` soon, in the caller's context. A job of the same ``key`` that still waits is forgotten."""
        with self._changed:
            self._number += 1
            name = key or str(self._number)
            self._jobs.pop(name, None)
            self._jobs[name] = (contextvars.copy_context(), job)
            if len(self._jobs) > MOST:
                self._jobs.popitem(last=False)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._work, name="shows-the-run", daemon=True)
                self._thread.start()
                atexit.register(self.drain, 1.0)
            self._changed.notify_all()

    def drain(self, seconds: float = END_SECONDS) -> None:
        """Waits until all is done, for so long at most. What is left then is forgotten."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while (self._jobs or self._busy) and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
            self._jobs.clear()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._jobs:
                    self._changed.wait()
                _key, (context, job) = self._jobs.popitem(last=False)
                self._busy = True
            try:
                context.run(self._do, job)
            finally:
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()

    def _do(self, job: Callable[[], None]) -> None:
        try:
            if server_answers():
                job()
                self._failed = ""
        except Exception as error:  # the server may be away, or refuse: the report has all of it
            words = f"{type(error).__name__}: {error}"
            if words != self._failed:  # once, not with every step
                _log.warning("not shown on the dashboard: %s", words)
            self._failed = words


background = BackgroundSender()
