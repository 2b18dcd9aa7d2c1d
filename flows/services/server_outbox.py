"""What Prefect's server is to be told, kept until it has heard it.

What the server could not be told, because it was away, waits in ``services/outbox`` until it answers (:func:`deliver`).
A record whose process is gone says that it was killed: its runs are told to the server as crashed, its deployment is
paused, its metrics are removed (:func:`sweep`).

Standard library alone: the process that watches over another (:mod:`flows.services.guard`) starts with it.
"""

import contextlib
import json
import time
import uuid
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from flows.services.http_client import UnreachableError, ask, prefect_headers
from flows.services.process_records import (
    ProcessIdentity,
    ProcessRecord,
    is_deserted,
    is_served,
    processes_folder,
    write_json,
)

OPEN = ("SCHEDULED", "PENDING", "RUNNING", "PAUSED", "CANCELLING")  # states of a flow run that has not ended
ARRIVES_SECONDS = 5.0  # in which a request that was under way when its process ended comes to the server
BEFORE_WORK = "the command was ended before this run had begun"
KILLED = "the process of this run ended without a word: it was killed, or the machine ran out of memory or power"


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
    write_json(_outbox(root) / f"{time.time_ns()}-{uuid.uuid4().hex[:8]}.json", asdict(message))


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
            if not is_served(root, message.path.removeprefix("/deployments/")):  # else it is not to be paused any more
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
    for path in sorted(processes_folder(root).glob("*.json")):
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
        if record.deployment and not is_served(root, record.deployment):
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


def _outbox(root: Path) -> Path:
    folder = root / "services" / "outbox"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
