"""Who works on a run, and on what data: ``runs/<run>/started.json``, written when it begins."""

import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel

from alignment.cache_key import data_digest
from alignment.durable_files import write_text

RECORD_FILE = "started.json"


class Process(BaseModel):
    """A process. ``place`` is the machine and the process namespace that ``pid`` counts in; ``born`` is the clock tick
    since the machine's start at which it began, because process ids are used again."""

    pid: int
    born: int
    place: str

    @property
    def here(self) -> bool:
        """Whether this process can see it."""
        return self.place == _place()

    @property
    def alive(self) -> bool:
        """Whether it still runs; False where it cannot be seen from here."""
        return self.here and _born(self.pid) == self.born


class DataFile(BaseModel):
    """A data file, folder or module as it was when the run began."""

    path: Path
    digest: str


class RunRecord(BaseModel):
    """``flow_run`` and ``api`` name the deployment's flow run and its server; None for a run from a terminal."""

    started: datetime
    process: Process
    data: dict[str, DataFile]
    flow_run: str | None = None
    api: str | None = None


def write_record(folder: Path, data: Mapping[str, Path], flow_run: str | None = None) -> None:
    """Notes in a run's folder that this process begins it, and the digests of its data.

    ``flow_run`` is the deployment's flow run that the run is part of.
    """
    files = {name: DataFile(path=path, digest=data_digest(path)) for name, path in data.items() if path.exists()}
    record = RunRecord(started=datetime.now(UTC), process=this_process(), data=files, flow_run=flow_run)
    if flow_run is not None:
        from prefect.settings import get_current_settings

        record.api = get_current_settings().api.url
    write_text(folder / RECORD_FILE, record.model_dump_json(indent=1) + "\n")


def read_record(folder: Path) -> RunRecord | None:
    """What was noted when a run began; None for a run that did not get that far, or of an earlier version."""
    try:
        return RunRecord.model_validate_json((folder / RECORD_FILE).read_text("utf-8"))
    except (OSError, ValueError):
        return None


def this_process() -> Process:
    """The process that asks."""
    born = _born(os.getpid())
    assert born is not None
    return Process(pid=os.getpid(), born=born, place=_place())


def _born(pid: int) -> int | None:
    """A process's start time in clock ticks since the machine's start (field 22 of proc(5)'s stat); None where there is
    no such process, or it has ended and only its parent does not know yet."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return None
    state, start_time = fields[0], fields[19]  # the command's name, which may hold anything, ends with the parenthesis
    return None if state in ("Z", "X") else int(start_time)


def _place() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip()
    return f"{platform.node()} {boot} {Path('/proc/self/ns/pid').readlink()}"
