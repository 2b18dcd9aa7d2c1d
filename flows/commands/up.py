"""``rlhf up``: everything that one machine needs, with one command: dashboard, registry, raters' app, and workers.

Prefect's server, MLflow's, the app in which people vote and a worker for each recipe given are children of this
process, which looks after them (:mod:`flows.services.supervisor`) and serves one page with their addresses
(:mod:`flows.commands.up_page`).
"""

import contextlib
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from alignment.errors import Fault, InputError, raise_faults
from alignment.recipe.resolved import ResolvedRecipe
from alignment.workspace import Workspace
from flows.command_lines import rlhf_line
from flows.commands.up_page import serve_page
from flows.commands.versions.serve import require_served
from flows.console import PlainConsole
from flows.failures import open_workspace
from flows.monitoring.links import PAGES, note_pages
from flows.recipe_source import prepare
from flows.services import servers
from flows.services.http_client import UnreachableError, answers, ask
from flows.services.named_servers import require_named
from flows.services.server_outbox import settle
from flows.services.supervisor import Child, Supervisor

HOST = "127.0.0.1"
SETTLE_SECONDS = 10.0
LOGS_SHOWN = 3  # failures to start whose log's end is shown
PORTS = {"up": 8080, "prefect": 4200, "mlflow": 5000, "app": 7860, "serve": 8000}


def up_command(
    recipes: Sequence[str], workspace: Path, overrides: list[str], ports: Sequence[str], served: str | None = None
) -> None:
    """Starts everything, looks after it until SIGTERM or Ctrl-C, and ends everything.

    ``served`` names a version that is served as `rlhf serve` does.
    """
    chosen = _ports(ports)
    if served is None:
        del chosen["serve"]
    space = open_workspace(workspace)
    servers.quiet_environment(space)
    require_named(space, "mlflow", "votes")
    if served is not None:
        require_served(served, space)
    prepared = {}
    for given in recipes:
        resolved = prepare(given, overrides)
        prepared[resolved.recipe.name] = resolved
    if prepared:
        from flows.pipeline.launch import checked
        from flows.pipeline.recipe_servers import server_faults

        for resolved in prepared.values():
            raise_faults(server_faults(resolved, space, environment=False))
            checked(resolved, space)
    with _alone(space):
        faults = _running(space) + _taken(chosen)
        if faults:
            raise InputError(faults)
        console = PlainConsole()
        children = [*_services(space, chosen, console), *_workers(space, chosen, prepared, overrides)]
        if served is not None:
            children.append(_model_server(space, chosen, served))
        _look_after(Supervisor(children), space, chosen["up"], console)


def _look_after(supervisor: Supervisor, space: Workspace, port: int, console: PlainConsole) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: supervisor.stopping.set())
    up: set[str] = set()
    restarts: dict[str, int] = {}

    def say() -> None:
        for child in supervisor.children:
            if child.restarts > restarts.get(child.name, 0):
                restarts[child.name] = child.restarts
                console.print(_trouble(child, was_up=child.name in up))
                up.discard(child.name)
            if child.state == "up" and child.name not in up:
                up.add(child.name)
                console.print(f"{child.name:<16} {child.url}")

    console.print(f"{'all of it':<16} http://{HOST}:{port}   (Ctrl-C ends everything)")
    with serve_page(supervisor, space, HOST, port):
        threading.Thread(target=_settle, args=(supervisor, space), name="settles", daemon=True).start()
        pages = note_pages(space.root, f"http://{HOST}:{port}")
        try:
            supervisor.run(say)
        finally:
            pages.unlink(missing_ok=True)
    for child in supervisor.children:
        servers.forget(space, child.name)
    console.print("everything has ended")


def _settle(supervisor: Supervisor, space: Workspace) -> None:
    """Tells the server now and then what is to be said of processes that were killed, and what it missed itself."""
    while not supervisor.stopping.wait(SETTLE_SECONDS):
        with contextlib.suppress(OSError):
            settle(space.root)


def _trouble(child: Child, *, was_up: bool) -> str:
    """That a child ended, and where it never was up, the end of its log: nobody would look for what never showed."""
    if was_up:
        return f"{child.name:<16} {child.problem}; it is started again"
    log = servers.end_of_log(child.log) if child.restarts <= LOGS_SHOWN else ""
    return f"{child.name:<16} did not come up: it {child.problem}; it is tried again. Its log is {child.log}{log}"


def _services(space: Workspace, ports: Mapping[str, int], console: PlainConsole) -> Iterator[Child]:
    own = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    for name in ("prefect", "mlflow"):
        url = f"http://{HOST}:{ports[name]}"
        yield Child(
            name, servers.command(space, name, ports[name]), _answers(url + servers.HEALTH[name]), _log(space, name),
            {**own, "PREFECT_UI_API_URL": f"{url}/api"}, url=url, started=_noted(space, name, url),
            inherits=_life(space, name),
        )  # fmt: skip
    url = f"http://{HOST}:{ports['app']}"
    command = [sys.executable, "-m", "flows.cli", "rate", "--workspace", str(space.root), "--port", str(ports["app"])]
    yield Child(
        "app", command, _answers(f"{url}/health"), _log(space, "app"), _beside(ports), url=f"{url}/rate",
        after=("prefect",), say=console.print,  # the administrator's link: in no log
    )  # fmt: skip


def _workers(
    space: Workspace, ports: Mapping[str, int], recipes: Mapping[str, ResolvedRecipe], overrides: Sequence[str]
) -> Iterator[Child]:
    server = f"http://{HOST}:{ports['prefect']}"
    for name, resolved in recipes.items():
        path = str(resolved.path.resolve())
        command = [sys.executable, "-m", "flows.cli", "deploy", path, "--workspace", str(space.root)]
        command += [word for one in overrides for word in ("--set", one)]
        yield Child(
            f"worker {name}", command, _is_ready(f"{server}/api/deployments/name/recipe/{name}"),
            _log(space, f"worker-{name}"), _beside(ports), url=f"{server}/deployments", after=("prefect",),
        )  # fmt: skip


def _model_server(space: Workspace, ports: Mapping[str, int], served: str) -> Child:
    """`rlhf serve`, with the key that this command's environment has, and servers of its own below it."""
    url = f"http://{HOST}:{ports['serve']}"
    command = [sys.executable, "-m", "flows.cli", "serve", served, "--workspace", str(space.root)]
    command += ["--port", str(ports["serve"])]
    return Child(
        "serve", command, _answers(f"{url}/health"), _log(space, "serve"), dict(os.environ), url=f"{url}/v1",
        after=("mlflow",),
    )  # fmt: skip


def _beside(ports: Mapping[str, int]) -> dict[str, str]:
    """The environment of what works with the server: where it is, and where reports are shown."""
    return {
        **os.environ,
        "PREFECT_API_URL": f"http://{HOST}:{ports['prefect']}/api",
        PAGES: f"http://{HOST}:{ports['up']}",
    }


def _log(space: Workspace, name: str) -> Path:
    return space.folder("services") / f"{name}.log"


def _noted(space: Workspace, name: str, url: str) -> Callable[[int], None]:
    """Notes where a service is, so that `rlhf run` in the same workspace finds it."""
    return lambda pid: servers.note(space, servers.Service(name, url, pid))


def _life(space: Workspace, name: str) -> Callable[[], AbstractContextManager[list[int]]]:
    """What makes a service hold its lock for as long as it lives."""

    @contextmanager
    def inherited() -> Iterator[list[int]]:
        with servers.lifelong_lock(space, name) as descriptor:
            yield [descriptor]

    return inherited


def _answers(url: str) -> Callable[[], bool]:
    return lambda: answers(url)


def _is_ready(url: str) -> Callable[[], bool]:
    """Whether a deployment's worker asks for work: Prefect calls it READY while it does."""

    def is_ready() -> bool:
        try:
            return bool(ask(url).json().get("status") == "READY")
        except (UnreachableError, ValueError):
            return False

    return is_ready


def _ports(given: Sequence[str]) -> dict[str, int]:
    """The ports, with what the command line changes. Raises InputError with everything wrong with that."""
    ports, faults = dict(PORTS), []
    for one in given:
        match = re.fullmatch(r"([a-z]+)=(\d{1,5})", one)
        if match is None or match[1] not in PORTS or not 0 < int(match[2]) < 65536:
            faults.append(Fault(f"{one!r} is no port", f"write one of {', '.join(PORTS)} = a port", field="--port"))
        else:
            ports[match[1]] = int(match[2])
    if len(set(ports.values())) < len(ports):
        faults.append(Fault("two services on one port", "give each its own", field="--port"))
    if faults:
        raise InputError(faults)
    return ports


def _taken(ports: Mapping[str, int]) -> list[Fault]:
    faults = []
    for name, port in ports.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do: one just ended is no fault
            try:
                probe.bind((HOST, port))
            except OSError:
                remedy = f"end what uses it, or give another: --port {name}=N"
                faults.append(Fault(f"port {port}, for {name}, is taken", remedy, field="--port"))
    return faults


def _running(space: Workspace) -> list[Fault]:
    """Services that a run or `rlhf dashboard` left running here: two servers on one database is one too many."""
    found = []
    if os.environ.pop("PREFECT_API_URL", None):
        problem = "PREFECT_API_URL names a Prefect server, and `rlhf up` starts its own"
        found.append(Fault(problem, "unset it", field="PREFECT_API_URL"))
    for name in ("prefect", "mlflow"):
        if (service := servers.find(space, name)) is not None:
            problem = f"{name} already runs in this workspace, at {service.url}"
            end = rlhf_line("dashboard", "--stop", workspace=space.root, here=True)
            found.append(Fault(problem, f"end it first: {end}"))
    return found


@contextmanager
def _alone(space: Workspace) -> Iterator[None]:
    """One `rlhf up` a workspace."""
    lock = FileLock(space.folder("services") / "up.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError([Fault("rlhf up already runs in this workspace", "end that one first")]) from None
    try:
        yield
    finally:
        lock.release()
