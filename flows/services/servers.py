"""The services beside a run: the Prefect server with its dashboard, and MLflow's page.

A run finds the server that an earlier one left running, or starts one and leaves it running: that is the dashboard.
``rlhf dashboard --stop`` ends it. Where ``PREFECT_API_URL`` is set, that server is used and none is started.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, lock_descriptor

from alignment.durable_files import write_text
from alignment.errors import Fault, InputError, StageError
from alignment.workspace import Workspace, is_locked
from flows.services.http_client import answers, spare_loopback, without_password
from flows.services.named_servers import HEALTH_PATH, reach
from flows.services.ports import LOOPBACK, reserved_port

STOP_SECONDS = 20.0  # for a service that was told to stop to be gone
START_SECONDS = 300.0  # a busy machine takes its time; one that ends is noticed at once
PATIENCE_SECONDS = 10.0  # of silence, before a wait is put into words
HEALTH = {"prefect": f"/api{HEALTH_PATH}", "mlflow": HEALTH_PATH}
PORTS = {"prefect": 4200, "mlflow": 5000}


@dataclass(frozen=True, slots=True)
class Service:
    """A running service: its name, the address of its pages and its process id (None: not ours to stop)."""

    name: str
    url: str
    pid: int | None
    api_url: str = field(default="", compare=False)  # where it is not below ``url``, as in Prefect's cloud

    @property
    def api(self) -> str:
        """The address of its programming interface."""
        return self.api_url or (f"{self.url}/api" if self.name == "prefect" else self.url)

    @property
    def health(self) -> str:
        """The address that answers with success while the service works."""
        return self.api + HEALTH_PATH


def quiet_environment(workspace: Workspace) -> None:
    """Sets what libraries read when they are imported: no telemetry, no chatter. Call it first."""
    defaults = {
        "PREFECT_HOME": str(workspace.folder("prefect")),
        "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(workspace.folder("prefect", "results")),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # In memory, what is held would be forgotten with the server and counted as held for ever.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # the terminal has a display of its own
        "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",  # a server that is away is said once, and by us
        "PREFECT_CLI_PROMPT": "false",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",  # what is said outside of a run belongs to none
        "PREFECT_CLIENT_MAX_RETRIES": "3",  # 14 s for a server that restarts; what is longer away is told later
        "PREFECT_API_REQUEST_TIMEOUT": "15",  # a server whose database is locked takes a minute to say so, each time
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TQDM_DISABLE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # read with the first product on a GPU: what lets its products repeat
        # Threads that wait for each other by spinning fight over the cores with whatever else runs on the machine; ones
        # that sleep at once wait to be woken. A short spin is as fast as a long one on a quiet machine, and four times
        # faster beside one busy neighbour (tests/benchmarks/RESULTS.md).
        "GOMP_SPINCOUNT": "3000",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    spare_loopback()
    for module in ("transformers", "trl", "peft", "accelerate", "torch"):
        warnings.filterwarnings("ignore", category=FutureWarning, module=module)
        warnings.filterwarnings("ignore", category=UserWarning, module=module)


def find(workspace: Workspace, name: str) -> Service | None:
    """The service, if it answers. Raises InputError where another machine runs it on the same workspace."""
    if name == "prefect" and (url := os.environ.get("PREFECT_API_URL")):
        return named_server(url)
    if name == "mlflow" and (uri := workspace.mlflow_uri).startswith(("http://", "https://")):
        return Service(name, without_password(uri).rstrip("/"), None, api_url=uri.rstrip("/"))
    service = _recorded(workspace, name)
    return service if service and _healthy(service) else None


def begin(workspace: Workspace, name: str) -> Service:
    """Finds the service or starts it, without waiting until it answers: see :func:`wait`.

    Raises InputError where another machine runs it on the same workspace.
    """
    return begin_or_find(workspace, name)[0]


def begin_or_find(workspace: Workspace, name: str) -> tuple[Service, bool]:
    """:func:`begin`, and whether this process started it."""
    with FileLock(workspace.folder("services") / f"{name}.lock"):
        service = find(workspace, name) or _recorded(workspace, name)
        if service is not None:
            return service, False
        with (
            reserved_port(PORTS[name]) as (port, reserved),
            lifelong_lock(workspace, name) as lock,
            _log(workspace, name).open("ab") as log,
        ):
            url = f"http://{LOOPBACK}:{port}"
            environment = {k: v for k, v in os.environ.items() if k != "PREFECT_API_URL"}
            environment["PREFECT_UI_API_URL"] = f"{url}/api"
            process = subprocess.Popen(
                command(workspace, name, port), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=environment, cwd=workspace.root, start_new_session=True, pass_fds=[lock, reserved],
            )  # fmt: skip
        note(workspace, Service(name, url, process.pid))
        return Service(name, url, process.pid), True


@contextmanager
def lifelong_lock(workspace: Workspace, name: str) -> Iterator[int]:
    """A descriptor that holds the service's lock as long as any process has it open, on whatever machine.

    A process that inherits it holds the lock for its life, however that ends: what a recorded process id cannot say
    where ids are used again, or belong to another machine. (A `FileLock` would be given back when the starter ends.)
    Raises InputError where some process holds it already.
    """
    path = workspace.folder("services") / f"{name}.life"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    deadline = time.monotonic() + STOP_SECONDS
    try:
        while not lock_descriptor(descriptor, blocking=False):
            if time.monotonic() > deadline:
                problem = f"a {name} server that is not on record here is at work on this workspace"
                raise InputError([Fault(problem, "end it first", file=str(workspace.root))])
            time.sleep(0.05)
        yield descriptor
    finally:
        os.close(descriptor)


def wait(workspace: Workspace, service: Service, say: Callable[[str], None] = lambda _text: None) -> Service:
    """Waits until the service answers; ``say`` hears of a wait that takes long.

    Raises InputError where a variable names a server that does not answer, after seconds, and StageError with the
    end of the log where one that was started here does not come up.
    """
    if service.pid is None:
        reach(service.name, service.health)
        return service
    began, words = time.monotonic(), False
    log = _log(workspace, service.name)
    while not (_running(service.pid) and _healthy(service)):  # else what answers is somebody else's
        waited = time.monotonic() - began
        if waited > START_SECONDS or not _running(service.pid):
            raise StageError(f"the {service.name} service did not start; its log is {log}{end_of_log(log)}")
        if waited > PATIENCE_SECONDS and not words:
            say(f"waiting for the {service.name} service at {service.url}; its log is {log}")
            words = True
        time.sleep(0.1)
    return service


def named_server(url: str) -> Service:
    """The Prefect server whose interface is at ``url``, as `PREFECT_API_URL` gives it."""
    api = url.rstrip("/")
    return Service("prefect", without_password(api).removesuffix("/api"), None, api_url=api)


def end_of_log(path: Path, lines: int = 12) -> str:
    """The last lines of a log, indented, each on a line of its own; nothing where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 8192))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    rows = [row.rstrip() for row in text.splitlines() if row.strip()]
    return "".join(f"\n    {row[:300]}" for row in rows[-lines:])


def stop(workspace: Workspace, name: str) -> bool:
    """Stops the service that a run of ours started. Says whether there was one.

    Raises InputError where another machine runs it.
    """
    service = _recorded(workspace, name)
    _state(workspace, name).unlink(missing_ok=True)
    if service is None or service.pid is None:
        return False
    os.killpg(service.pid, signal.SIGTERM)
    return True


def command(workspace: Workspace, name: str, port: int) -> list[str]:
    """The command line of a service on a port of this machine."""
    if name == "prefect":
        return [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    options = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    return [sys.executable, "-m", "flows.services.mlflow_server", workspace.mlflow_uri, *options]


def note(workspace: Workspace, service: Service) -> None:
    """Writes down where a service of this workspace is, for :func:`find`."""
    record: dict[str, str | int | None] = {
        "url": service.url, "pid": service.pid, "name": service.name, "host": socket.gethostname(),
    }  # fmt: skip
    if service.pid is not None:
        record["started"] = _started_at(service.pid)
    write_text(_state(workspace, service.name), json.dumps(record))


def forget(workspace: Workspace, name: str) -> None:
    """Takes away what :func:`note` wrote."""
    _state(workspace, name).unlink(missing_ok=True)


def _state(workspace: Workspace, name: str) -> Path:
    return workspace.folder("services") / f"{name}.json"


def _log(workspace: Workspace, name: str) -> Path:
    return workspace.folder("services") / f"{name}.log"


def _recorded(workspace: Workspace, name: str) -> Service | None:
    """The service on record, if its process lives. Raises InputError where it lives on another machine.

    It lives where its lock is held; its process id counts on its own machine only, and only while it is the service's.
    """
    try:
        record = json.loads(_state(workspace, name).read_text("utf-8"))
        service, host = Service(name, str(record["url"]), int(record["pid"])), record.get("host")
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not is_locked(workspace.root / "services" / f"{name}.life"):
        return None
    here = socket.gethostname()
    if host not in (None, here):
        problem = f"the machine {host} runs {name} on this workspace, and this one is {here}"
        remedy = "end it there with `rlhf dashboard --stop`, or set PREFECT_API_URL to a server that both reach"
        raise InputError([Fault(problem, remedy, file=str(workspace.root))])
    return service if _is_the_service(service, record.get("started")) else None


def _is_the_service(service: Service, started: int | None) -> bool:
    """Whether the process id still is the service's (ids are used again).

    A process is known by when it started; in a record without that, of an earlier version, by the module that it runs.
    """
    if service.pid is None:
        return False
    if started is not None:
        return started == _started_at(service.pid)
    try:
        arguments = Path(f"/proc/{service.pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return [b"-m", service.name.encode()] in [arguments[at : at + 2] for at in range(len(arguments))]


def _started_at(pid: int) -> int | None:
    """When a process started, in clock ticks since the machine did; None where there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("ascii", errors="replace")
    except OSError:
        return None
    return int(text.rpartition(")")[2].split()[19])  # field 22; the name before it may hold spaces and brackets


def _running(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG) == (0, 0)
    except ChildProcessError:  # another process's child
        return Path(f"/proc/{pid}").exists()


def _healthy(service: Service) -> bool:
    return answers(service.health)
