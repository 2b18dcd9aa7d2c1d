"""Who hears of a run's progress: the terminal, the dashboard, or nobody."""

import logging
from contextvars import ContextVar
from typing import Protocol

from alignment.stage import Progress


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


listener: ContextVar[Listener] = ContextVar("listener", default=Silent())  # noqa: B039 - Silent has no state
