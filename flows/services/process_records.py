"""Which processes are at work in a workspace.

A process that runs a recipe or serves one writes down who it is and what it answers for (``services/processes``;
:mod:`flows.services.process_registration`). A record whose process is gone says that it was killed
(:func:`flows.services.server_outbox.sweep`).

Standard library alone: the process that watches over another (:mod:`flows.services.guard`) starts with it.
"""

import contextlib
import json
import os
import socket
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

OWNER = "# owner "  # the line of a metrics file that says whose it is; Prometheus takes it for a comment


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process of one machine for good: process ids are used again, also after a boot."""

    pid: int
    started: int  # clock ticks after boot
    boot: str
    host: str

    @classmethod
    def of(cls, pid: int) -> "ProcessIdentity | None":
        """The identity of a process of this machine; None where there is none of this id."""
        started = _start_time(pid)
        return None if started is None else cls(pid, started, _boot(), socket.gethostname())

    @property
    def is_gone(self) -> bool:
        """Whether the process has certainly ended; one of another machine may be alive."""
        if self.host != socket.gethostname():
            return False
        return self.boot != _boot() or _start_time(self.pid) != self.started


def _start_time(pid: int) -> int | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else int(fields[19])


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip()
    except OSError:
        return ""


@dataclass(slots=True)
class ProcessRecord:
    """A process at work: the flow runs that it answers for, and the deployment that it serves.

    ``unmade`` are the names of runs that it asked the server to make: it may end before it learns their ids.
    """

    identity: ProcessIdentity
    api: str = ""  # of the Prefect server
    ours: bool = True  # the server is the workspace's own, whose address may be another when it is started again
    flow_runs: list[str] = field(default_factory=list)
    deployment: str = ""
    unmade: list[str] = field(default_factory=list)


def owner_line() -> str:
    """The line by which a metrics file says whose it is."""
    identity = ProcessIdentity.of(os.getpid())
    return OWNER + json.dumps(asdict(identity)) if identity else ""


def is_deserted(text: str) -> bool:
    """Whether a metrics file was left by a process that was killed."""
    line = next((line for line in text.splitlines() if line.startswith(OWNER)), None)
    if line is None:
        return False
    try:
        return ProcessIdentity(**json.loads(line.removeprefix(OWNER))).is_gone
    except (ValueError, TypeError):
        return False


def anybody_at_work(root: Path) -> bool:
    """Whether a living process runs or serves a recipe in the workspace."""
    return any(True for _values in living(root))


def is_served(root: Path, deployment: str) -> bool:
    """Whether a living process serves the deployment: the one that was started after the killed one."""
    return any(values["deployment"] == deployment for values in living(root))


def living(root: Path) -> Iterator[dict[str, Any]]:
    """The records of the processes that live."""
    for path in processes_folder(root).glob("*.json"):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            values = json.loads(path.read_text("utf-8"))
            if not ProcessIdentity(**values["identity"]).is_gone:
                yield values


def processes_folder(root: Path) -> Path:
    """Where the records are."""
    folder = root / "services" / "processes"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Replaces a small file whole, or leaves it."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")  # as `rlhf gc` knows them
    temporary.write_text(json.dumps(values), "utf-8")
    temporary.replace(path)
