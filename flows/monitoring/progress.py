"""Who hears of a run's progress: the terminal, the dashboard, or nobody."""

import logging
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Protocol

from alignment.stage import Progress

_log = logging.getLogger(__name__)


class Listener(Protocol):
    """Hears what happens to a run's stages, in order."""

    def stage_started(self, name: str, kind: str) -> None:
        """A stage begins (a cached one too)."""

    def stage_progress(self, name: str, progress: Progress) -> None:
        """A stage got one step further."""

    def stage_finished(self, name: str, *, status: str, cached: bool, seconds: float, summary: str) -> None:
        """A stage ended; ``status`` is "completed" or "failed"."""

    def warned(self, line: str) -> None:
        """Something is not as it should be, and the run goes on."""


class Silent:
    """Hears nothing."""

    def stage_started(self, name: str, kind: str) -> None:
        """Nothing."""

    def stage_progress(self, name: str, progress: Progress) -> None:
        """Nothing."""

    def stage_finished(self, name: str, *, status: str, cached: bool, seconds: float, summary: str) -> None:
        """Nothing."""

    def warned(self, line: str) -> None:
        """Logged: nobody else would say it."""
        logging.getLogger(__name__).warning(line)


class GuardedListener:
    """Passes everything on to a listener until that fails: a closed terminal must not stop a training."""

    def __init__(self, listener: Listener) -> None:
        self._listener: Listener = listener

    def stage_started(self, name: str, kind: str) -> None:
        """Passed on."""
        self._pass_on(self._listener.stage_started, name, kind)

    def stage_progress(self, name: str, progress: Progress) -> None:
        """Passed on."""
        self._pass_on(self._listener.stage_progress, name, progress)

    def stage_finished(self, name: str, *, status: str, cached: bool, seconds: float, summary: str) -> None:
        """Passed on."""
        self._pass_on(
            self._listener.stage_finished, name, status=status, cached=cached, seconds=seconds, summary=summary
        )

    def warned(self, line: str) -> None:
        """Passed on."""
        self._pass_on(self._listener.warned, line)

    def _pass_on(self, hear: Callable[..., None], *given: Any, **named: Any) -> None:
        try:
            hear(*given, **named)
        except Exception as error:
            _log.warning("progress is no longer shown: %s: %s", type(error).__name__, error)
            self._listener = Silent()


listener: ContextVar[Listener] = ContextVar("listener", default=Silent())  # noqa: B039 - Silent has no state
