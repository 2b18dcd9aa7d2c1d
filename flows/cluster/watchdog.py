"""The watchdog of a stage on Ray: passes its progress on, and ends it where it fails for good or stands still."""

import json
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

from alignment.durable_files import write_text
from alignment.errors import StageError
from alignment.stage import Progress, StageContext
from flows.cluster.stack_dump import all_stacks

_log = logging.getLogger(__name__)
FAILED = "failed.txt"  # what a worker leaves that found that the work cannot be done


def stalled(home: Path, context: StageContext) -> StageError:
    """Writes the stacks of all workers into the log and beside the checkpoints; what is to be said of it."""
    text = all_stacks(home)
    kept = context.checkpoints.parent / "stacks.txt"
    write_text(kept, text + "\n")
    seconds = context.run.resources.stall_seconds
    _log.error("%s: no step in %g s; the stacks of its workers:\n%s", context.name, seconds, text)
    return StageError(f"{context.name}: no step in {seconds:g} s (resources.stall_seconds); stacks are in {kept}")


@dataclass
class StageWatchdog:
    """Reads what the workers of a stage write under ``home``."""

    home: Path
    context: StageContext
    _read: int = 0  # bytes of the progress file
    _seen: str = ""
    _since: float = field(default_factory=time.monotonic)

    def look(self) -> None:
        """Passes new progress on. Raises StageError where the work cannot be done, or nothing happens any more."""
        try:
            self.pass_on()
        except Exception as error:  # a dashboard that is away must not end the stage
            _log.warning("%s: its progress was not passed on: %s", self.context.name, error)
        if (now := self._signs()) != self._seen:
            self._seen, self._since = now, time.monotonic()
        if (failed := self.home / FAILED).exists():
            raise StageError(failed.read_text("utf-8"))
        if time.monotonic() - self._since > self.context.run.resources.stall_seconds:
            raise stalled(self.home, self.context)

    def pass_on(self) -> None:
        """Tells the stage's listener of the steps since the last time."""
        path = self.home / "progress.jsonl"
        if not path.exists():
            return
        with path.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            self.context.report(Progress(**json.loads(line)))

    def _signs(self) -> str:
        """What changes as long as something happens: workers come, steps are made."""
        files = [self.home / "progress.jsonl", *sorted(self.home.glob("workers/*")), *sorted(self.home.glob("usage/*"))]
        return " ".join(f"{path.name}{path.stat().st_mtime_ns}" for path in files if path.exists())
