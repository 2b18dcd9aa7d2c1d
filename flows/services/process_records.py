"""Which processes are at work in a workspace, and what Prefect's server has still to be told about those that ended.

A process that runs a recipe or serves one writes down who it is and what it answers for (``services/processes``). A
record whose process is gone says that it was killed: its runs are told to the server as crashed, its deployment is
paused, its metrics are removed (:func:`sweep`). What the server could not be told, because it was away, waits in
``services/outbox`` until it answers (:func:`deliver`).

Standard library alone: the process that watches over another (:mod:`flows.guard`) starts with it.
"""

import contextlib
import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from flows.services.http_client import UnreachableError, ask, prefect_headers

OPEN = ("SCHEDULED", "PENDING", "RUNNING", "PAUSED", "CANCELLING")  # states of a flow run that has not ended
OWNER = "# owner "  # the line of a metrics file that says whose it is; Prometheus takes it for a comment
ARRIVES_SECONDS = 5.0  # in which a request that was under way when its process ended comes to the server
BEFORE_WORK = "the command was ended before this run had begun"
KILLED = "the process of this run ended without a word: it was killed, or the machine ran out of memory or power"


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


_current: list["ProcessRegistration"] = []  # of this process, the newest last


def answer_for(flow_run: str | None) -> None:
    """This process answers for a flow run until :func:`at_work` ends."""
    if flow_run and _current:
        _current[-1].begin(flow_run)


@contextmanager
def making_run(name: str) -> Iterator[Callable[[str], None]]:
    """While the server is asked to make a flow run of this name, and then the run, whose id is told, is at work.

    However this process ends meanwhile, a run that was made is not left pending: by a kill, its record says so.
    """
    if not _current:
        yield lambda flow_run: None
        return
    registration = _current[-1]
    record, root = registration.record, registration.path.parent.parent.parent
    address = {"api": record.api, "ours": record.ours}
    registration.make(name)
    made: list[str] = []

    def told(flow_run: str) -> None:
        made.append(flow_run)
        record.unmade.remove(name)
        registration.begin(flow_run)

    try:
        yield told
    except BaseException:
        for flow_run in made:
            post(root, state_message(flow_run, "CRASHED", "Crashed", BEFORE_WORK, force=False, **address))
        if not made:
            post(root, unmade_message(name, **address))
        raise


@contextmanager
def at_work(root: Path, api: str, *, ours: bool) -> Iterator["ProcessRegistration"]:
    """Records this process for as long as the context lasts, however it is left; only a kill leaves the record."""
    identity = ProcessIdentity.of(os.getpid())
    assert identity is not None
    registration = ProcessRegistration(_processes(root), ProcessRecord(identity, api, ours))
    registration.write()
    _current.append(registration)
    try:
        yield registration
    finally:
        _current.remove(registration)
        registration.path.unlink(missing_ok=True)


class ProcessRegistration:
    """The record of this process, kept on the disk as it changes."""

    def __init__(self, folder: Path, record: ProcessRecord) -> None:
        self.record = record
        self.path = folder / f"{record.identity.pid}-{uuid.uuid4().hex[:8]}.json"

    def write(self) -> None:
        _write(self.path, asdict(self.record))

    def begin(self, flow_run: str) -> None:
        """This process answers for a flow run."""
        if flow_run not in self.record.flow_runs:
            self.record.flow_runs.append(flow_run)
            self.write()

    def make(self, name: str) -> None:
        """This process asks the server to make a flow run of this name."""
        self.record.unmade.append(name)
        self.write()

    def serve(self, deployment: str) -> None:
        """This process serves a deployment: without it nobody does the deployment's work."""
        self.record.deployment = deployment
        self.write()


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


@dataclass(frozen=True, slots=True)
class ServerRequest:
    """A request that Prefect's server is to get. With ``flow_run`` it is sent only while that run has not ended, unless
    ``force``; with ``named`` it is about the run of this name, if there is one; ``mark`` is a file that is written
    once it was taken."""

    method: str
    path: str
    body: Any
    api: str = ""
    ours: bool = True
    flow_run: str = ""
    force: bool = False
    mark: str = ""
    text: str = ""  # of the mark
    named: str = ""


def state_message(flow_run: str, kind: str, name: str, message: str, *, force: bool, **address: Any) -> ServerRequest:
    """How a flow run ended, in the words of Prefect's interface."""
    body = _state(kind, name, message)
    return ServerRequest("POST", _state_path(flow_run), body, flow_run=flow_run, force=force, **address)


def unmade_message(name: str, **address: Any) -> ServerRequest:
    """That the process which had a flow run made under this name ended before it learned its id."""
    return ServerRequest("POST", "", _state("CRASHED", "Crashed", BEFORE_WORK), named=name, **address)


def _state(kind: str, name: str, message: str) -> dict[str, Any]:
    return {"state": {"type": kind, "name": name, "message": message}, "force": True}


def _state_path(flow_run: str) -> str:
    return f"/flow_runs/{flow_run}/set_state"


def post(root: Path, message: ServerRequest) -> None:
    """Puts a message into the outbox; :func:`deliver` sends it."""
    _write(_outbox(root) / f"{time.time_ns()}-{uuid.uuid4().hex[:8]}.json", asdict(message))


def deliver(root: Path, api: str = "") -> int:
    """Sends what waits in the outbox, oldest first. ``api`` is where the workspace's own server is now.

    Returns how many messages are left, of servers that do not answer.
    """
    left = 0
    away: set[str] = set()  # addresses: one that hangs is waited for once
    for path in sorted(_outbox(root).glob("*.json")):
        try:
            message = ServerRequest(**json.loads(path.read_text("utf-8")))
        except FileNotFoundError:  # another process has just sent it
            continue
        except (OSError, ValueError, TypeError):
            path.unlink(missing_ok=True)  # nothing that this version wrote
            continue
        address = own_api(root, api) if message.ours else message.api
        try:
            if address in away:
                raise UnreachableError(address)
            if not _is_served(root, message.path.removeprefix("/deployments/")):  # else it is not to be paused any more
                _send(address, message, age=time.time() - int(path.name.partition("-")[0]) / 1e9)
        except UnreachableError:
            away.add(address)
            left += 1
            continue
        if message.mark:
            with contextlib.suppress(OSError):
                Path(message.mark).parent.mkdir(parents=True, exist_ok=True)
                Path(message.mark).write_text(message.text, "utf-8")
        path.unlink(missing_ok=True)
    return left


def _send(api: str, message: ServerRequest, age: float) -> None:
    """Sends a message that is ``age`` seconds old; a refusal is an answer, and is not sent again. Raises
    UnreachableError."""
    if not api:
        raise UnreachableError("no server")
    headers = prefect_headers()
    if message.named:
        flow_run = _run_of(api, message.named)
        if flow_run is None and age < ARRIVES_SECONDS:
            raise UnreachableError("the run may still be on its way")
        if flow_run is None:
            return
        message = replace(message, flow_run=flow_run, path=_state_path(flow_run))
    if message.flow_run and not message.force:
        reply = ask(f"{api}/flow_runs/{message.flow_run}", headers=headers, timeout=5.0)
        if reply.status >= 500:
            raise UnreachableError(f"the server answers {reply.status}")
        if not reply.ok or reply.json().get("state_type") not in OPEN:
            return
    reply = ask(f"{api}{message.path}", method=message.method, body=message.body, headers=headers, timeout=5.0)
    if reply.status >= 500:
        raise UnreachableError(f"the server answers {reply.status}")


def _run_of(api: str, name: str) -> str | None:
    """The id of the flow run of a name that no other has. Raises UnreachableError."""
    body = {"flow_runs": {"name": {"any_": [name]}}}
    reply = ask(f"{api}/flow_runs/filter", method="POST", body=body, headers=prefect_headers(), timeout=5.0)
    if reply.status >= 500:
        raise UnreachableError(f"the server answers {reply.status}")
    found = reply.json() if reply.ok else []
    return str(found[0]["id"]) if found else None


def sweep(root: Path) -> None:
    """Looks for processes that were killed, and puts into the outbox what is to be said of them."""
    for path in sorted(_processes(root).glob("*.json")):
        try:
            values = json.loads(path.read_text("utf-8"))
            record = ProcessRecord(**{**values, "identity": ProcessIdentity(**values["identity"])})
        except FileNotFoundError:
            continue
        except (OSError, ValueError, TypeError, KeyError):
            path.unlink(missing_ok=True)
            continue
        if not record.identity.is_gone:
            continue
        api, ours = record.api, record.ours
        for flow_run in record.flow_runs:
            post(root, state_message(flow_run, "CRASHED", "Crashed", KILLED, force=False, api=api, ours=ours))
        for name in record.unmade:
            post(root, unmade_message(name, api=api, ours=ours))
        if record.deployment and not _is_served(root, record.deployment):
            place = f"/deployments/{record.deployment}"
            post(root, ServerRequest("PATCH", place, {"paused": True}, api=api, ours=ours))
        path.unlink(missing_ok=True)
    for path in (root / "metrics").glob("*.prom"):
        with contextlib.suppress(OSError):
            if is_deserted(path.read_text("utf-8")):
                path.unlink(missing_ok=True)


def settle(root: Path) -> int:
    """Says what is to be said of processes that were killed, and of what a server missed. Returns what is left."""
    sweep(root)
    return deliver(root)


def anybody_at_work(root: Path) -> bool:
    """Whether a living process runs or serves a recipe in the workspace."""
    return any(True for _values in _living(root))


def _is_served(root: Path, deployment: str) -> bool:
    """Whether a living process serves the deployment: the one that was started after the killed one."""
    return any(values["deployment"] == deployment for values in _living(root))


def _living(root: Path) -> Iterator[dict[str, Any]]:
    """The records of the processes that live."""
    for path in _processes(root).glob("*.json"):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            values = json.loads(path.read_text("utf-8"))
            if not ProcessIdentity(**values["identity"]).is_gone:
                yield values


def own_api(root: Path, api: str = "") -> str:
    """Where the interface of the workspace's own Prefect server is: as given, or as it was noted when it started.

    Empty where it does not run: another workspace's server may have its port by now.
    """
    if api:
        return api
    try:
        record = json.loads((root / "services" / "prefect.json").read_text("utf-8"))
        alive = b"prefect" in Path(f"/proc/{int(record['pid'])}/cmdline").read_bytes()
        return f"{record['url']}/api" if alive else ""
    except (OSError, ValueError, KeyError):
        return ""


def _processes(root: Path) -> Path:
    folder = root / "services" / "processes"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _outbox(root: Path) -> Path:
    folder = root / "services" / "outbox"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _write(path: Path, values: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")  # as `rlhf gc` knows them
    temporary.write_text(json.dumps(values), "utf-8")
    temporary.replace(path)
