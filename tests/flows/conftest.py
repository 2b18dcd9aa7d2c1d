"""The command line in this process, and one real Prefect server for all tests of it."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

T = TypeVar("T")


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code, standard output and standard error."""

    code: int
    out: str
    err: str


Rlhf = Callable[..., Ended]


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[str]:
    """The address of a real Prefect server on a database of its own, also for the processes that tests start."""
    from prefect.settings import PREFECT_API_URL
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=300):
        url = str(PREFECT_API_URL.value())
        before = os.environ.get("PREFECT_API_URL")
        os.environ["PREFECT_API_URL"] = url
        yield url
        if before is None:
            del os.environ["PREFECT_API_URL"]
        else:
            os.environ["PREFECT_API_URL"] = before


def call(*arguments: str | Path) -> Ended:
    """``rlhf`` with these arguments, in this process."""
    from flows.cli import main

    out, err = io.StringIO(), io.StringIO()
    argv, sys.argv = sys.argv, ["rlhf", *map(str, arguments)]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    finally:
        sys.argv = argv
    return Ended(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def rlhf(prefect_server: str) -> Rlhf:
    """Calls the command line, with a Prefect server to use."""
    return call


class Room:
    """A workspace, its recipe, and the processes at work in it, on services of their own."""

    def __init__(self, recipe: Path, root: Path) -> None:
        self.recipe, self.root = recipe, root
        self.started: list[subprocess.Popen[bytes]] = []
        hidden = ("PREFECT_API_URL", "PREFECT_HOME", "RLHF_STORE", "PREFECT_PROFILES_PATH")
        self.environment = {name: value for name, value in os.environ.items() if name not in hidden}

    def command(self, *arguments: object) -> list[str]:
        return [sys.executable, "-m", "flows.cli", *map(str, arguments), "--workspace", str(self.root)]

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments), check=False, capture_output=True, text=True, env=self.environment, timeout=400
        )  # fmt: skip

    def start(self, *arguments: object) -> subprocess.Popen[bytes]:
        self.root.mkdir(parents=True, exist_ok=True)
        log = (self.root / f"{arguments[0]}.log").open("ab")
        # A shell starts what runs in its background deaf to Ctrl-C, and so would be what is started here.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            process = subprocess.Popen(
                self.command(*arguments), stdout=log, stderr=log, env=self.environment, start_new_session=True
            )
        finally:
            signal.signal(signal.SIGINT, before)
        self.started.append(process)
        return process

    def until(self, what: Callable[[], T | None], seconds: float) -> T:
        """Whatever ``what`` finds, as soon as it finds it; the logs where it does not in time."""
        end = time.monotonic() + seconds
        while True:
            with contextlib.suppress(httpx.HTTPError, FileNotFoundError):  # no server yet
                if (found := what()) is not None:
                    return found
            logs = {log.name: log.read_text("utf-8", "replace")[-3000:] for log in self.root.glob("*.log")}
            assert time.monotonic() < end, logs
            time.sleep(0.3)

    def report(self, number: int, seconds: float) -> dict[str, Any]:
        """The report of a run, once there is one."""
        path = self.root / "runs" / f"tiny-{number}" / "report.json"
        found: dict[str, Any] = self.until(lambda: json.loads(path.read_text()) if path.exists() else None, seconds)
        return found

    @property
    def api(self) -> str:
        """The address of the Prefect server's API, once the first process has started one."""
        url = json.loads((self.root / "services" / "prefect.json").read_text())["url"]
        return f"{url}/api"

    def post(self, path: str, body: Any) -> Any:
        """What Prefect's API answers."""
        return httpx.post(f"{self.api}{path}", json=body, timeout=20).raise_for_status().json()

    def end(self) -> None:
        """Stops whatever was started here."""
        for process in self.started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        self.run("dashboard", "--stop")
        for process in self.started:
            process.wait(timeout=60)


@pytest.fixture
def make_room() -> Iterator[Callable[[Path, Path], Room]]:
    """Makes rooms (recipe, root), and clears them up."""
    made: list[Room] = []

    def make(recipe: Path, root: Path) -> Room:
        made.append(Room(recipe, root))
        return made[-1]

    yield make
    for room in made:
        room.end()
