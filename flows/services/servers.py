"""The services beside a run: the Prefect server with its dashboard, and MLflow's page.

A run finds the server that an earlier one left running, or starts one and leaves it running: that is the dashboard.
``rlhf dashboard --stop`` ends it. Where ``PREFECT_API_URL`` is set, that server is used and none is started.
"""

import fcntl
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
from typing import Any

from alignment.errors import Fault, InputError, StageError
from alignment.workspace import Workspace, write_text
from flows.services.http_client import UnreachableError, answers, ask, prefect_headers, spare_loopback

START_SECONDS = 300.0  # a busy machine takes its time; one that ends is noticed at once
NAMED_SECONDS = 10.0  # for a server that a variable names: it runs already, or it is not there
PATIENCE_SECONDS = 10.0  # of silence, before a wait is put into words
LOG_LINES = 12  # of the end of the log of a service that did not start
HEALTH = {"prefect": "/api/health", "mlflow": "/health"}
VARIABLES = {"prefect": "PREFECT_API_URL", "mlflow": "MLFLOW_TRACKING_URI"}  # name servers of one's own
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
        return f"{self.api}/health"


def quiet_environment(workspace: Workspace) -> None:
    """Sets what libraries read when they are imported: no telemetry, no chatter. Call it first."""
    defaults = {
        "PREFECT_HOME": str(workspace.folder("prefect")),
        "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(workspace.folder("prefect", "results")),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # the terminal has a display of its own
        "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",  # a server that is away is said once, and by us
        "PREFECT_CLI_PROMPT": "false",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",  # what is said outside of a run belongs to none
        "PREFECT_CLIENT_MAX_RETRIES": "3",  # 14 s for a server that restarts; what is longer away is told later
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
    """The service, if it answers."""
    if name == "prefect" and (url := os.environ.get("PREFECT_API_URL")):
        return named_server(url)
    if name == "mlflow" and (uri := workspace.mlflow_uri).startswith(("http://", "https://")):
        return Service(name, uri.rstrip("/"), None)
    path = _state(workspace, name)
    if not path.exists():
        return None
    record = _alive(json.loads(path.read_text("utf-8")))
    service = record and Service(name, record["url"], record["pid"])
    return service if service and _healthy(service) else None


def begin(workspace: Workspace, name: str) -> Service:
    """Finds the service or starts it, without waiting until it answers: see :func:`wait`."""
    with _lock(workspace, name):
        service = find(workspace, name)
        if service is not None:
            return service
        path = _state(workspace, name)
        if path.exists() and (started := _alive(json.loads(path.read_text("utf-8")))):
            return Service(name, started["url"], started["pid"])
        port = _free_port(PORTS[name])
        url = f"http://127.0.0.1:{port}"
        log = (workspace.folder("services") / f"{name}.log").open("ab")
        environment = {k: v for k, v in os.environ.items() if k != "PREFECT_API_URL"}
        environment["PREFECT_UI_API_URL"] = f"{url}/api"
        process = subprocess.Popen(
            command(workspace, name, port), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            env=environment, cwd=workspace.root, start_new_session=True,
        )  # fmt: skip
        note(workspace, Service(name, url, process.pid))
        return Service(name, url, process.pid)


def wait(workspace: Workspace, service: Service, say: Callable[[str], None] = lambda _text: None) -> Service:
    """Waits until the service answers; ``say`` hears of a wait that takes long.

    Raises InputError where a variable names a server that does not answer, after ten seconds, and StageError with the
    end of the log where one that was started here does not come up.
    """
    if service.pid is None:
        reach(service.name, service.health)
        return service
    began, words = time.monotonic(), False
    log = workspace.root / "services" / f"{service.name}.log"
    while not _healthy(service):
        waited = time.monotonic() - began
        if waited > START_SECONDS or not _running(service.pid):
            tail = _end_of(log)
            raise StageError(f"the {service.name} service did not start; its log is {log}" + tail)
        if waited > PATIENCE_SECONDS and not words:
            say(f"waiting for the {service.name} service at {service.url}; its log is {log}")
            words = True
        time.sleep(0.1)
    return service


def named_server(url: str) -> Service:
    """The Prefect server whose interface is at ``url``, as `PREFECT_API_URL` gives it."""
    api = url.rstrip("/")
    return Service("prefect", api.removesuffix("/api"), None, api_url=api)


def reach(name: str, health: str, variable: str = "", seconds: float = NAMED_SECONDS) -> None:
    """Waits for a server that runs elsewhere. Raises InputError, with its address and the variable that names it."""
    variable = variable or VARIABLES[name]
    headers = prefect_headers() if name == "prefect" else {}
    deadline = time.monotonic() + seconds
    while True:
        try:
            reply = ask(health, headers=headers, timeout=min(4.0, seconds))
        except UnreachableError as error:
            problem = f"{name}'s server does not answer at {health}: {error}"
        else:
            if reply.ok:
                return
            problem = f"{name}'s server answers {reply.status} at {health}"
            if reply.status in (401, 403):
                remedy = "set PREFECT_API_KEY or PREFECT_API_AUTH_STRING" if name == "prefect" else "see who may use it"
                raise InputError([Fault(problem, remedy, field=variable)])
        if time.monotonic() > deadline:
            raise InputError([Fault(problem, "start that server, or unset the variable", field=variable)])
        time.sleep(0.5)


def reach_named_servers(workspace: Workspace) -> None:
    """Asks the servers that the environment names, before anything is done with them. Raises InputError."""
    if url := os.environ.get("PREFECT_API_URL"):
        reach("prefect", named_server(url).health)
    if (uri := workspace.mlflow_uri).startswith(("http://", "https://")):
        reach("mlflow", uri.rstrip("/") + HEALTH["mlflow"])


def _end_of(log: Path) -> str:
    """The last lines of a log, for a message; nothing where there are none."""
    try:
        lines = log.read_text("utf-8", "replace").rstrip().splitlines()[-LOG_LINES:]
    except OSError:
        return ""
    return "".join(f"\n    {line}" for line in (["which ends:", *lines] if lines else []))


def stop(workspace: Workspace, name: str) -> bool:
    """Stops the service that a run of ours started. Says whether there was one."""
    path = _state(workspace, name)
    if not path.exists():
        return False
    record = _alive(json.loads(path.read_text("utf-8")))
    path.unlink()
    if record is None:
        return False
    os.killpg(record["pid"], signal.SIGTERM)
    return True


def command(workspace: Workspace, name: str, port: int) -> list[str]:
    """The command line of a service on a port of this machine."""
    if name == "prefect":
        return [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    files = str(workspace.root.resolve() / "mlartifacts")  # else they land wherever the server was started
    store = ["--backend-store-uri", workspace.mlflow_uri, "--artifacts-destination", files, "--workers", "1"]
    return [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), *store]


def note(workspace: Workspace, service: Service) -> None:
    """Writes down where a service of this workspace is, for :func:`find`."""
    write_text(
        _state(workspace, service.name), json.dumps({"url": service.url, "pid": service.pid, "name": service.name})
    )


def forget(workspace: Workspace, name: str) -> None:
    """Takes away what :func:`note` wrote."""
    _state(workspace, name).unlink(missing_ok=True)


def _state(workspace: Workspace, name: str) -> Path:
    return workspace.folder("services") / f"{name}.json"


def _alive(record: dict[str, Any]) -> dict[str, Any] | None:
    """The record, if its process still is the service (process ids are used again)."""
    try:
        command = Path(f"/proc/{record['pid']}/cmdline").read_bytes()
    except OSError:
        return None
    return record if str(record["name"]).encode() in command else None


def _running(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG) == (0, 0)
    except ChildProcessError:  # another process's child
        return Path(f"/proc/{pid}").exists()


def _healthy(service: Service) -> bool:
    return answers(service.health)


def _free_port(wanted: int) -> int:
    for port in (wanted, 0):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return int(probe.getsockname()[1])
            except OSError:
                continue
    raise StageError("no free port on this machine")


@contextmanager
def _lock(workspace: Workspace, name: str) -> Iterator[None]:
    with (workspace.folder("services") / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
