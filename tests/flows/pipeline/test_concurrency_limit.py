"""Slots of a limit on a real Prefect server that is stopped and started again."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from alignment.errors import StageError
from alignment.workspace import Workspace
from flows.pipeline.concurrency_limit import LEASE_SECONDS, HeldSlots, set_limits
from flows.services import servers


class Server:
    """A Prefect server as a run starts it, on one port and one database through all of its lives."""

    def __init__(self, root: Path) -> None:
        self.space = Workspace(root)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.api = f"http://127.0.0.1:{self.port}/api"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        code = (
            "import os, sys; from pathlib import Path; from alignment.workspace import Workspace;"
            "from flows.services import servers;"
            "space = Workspace(Path(sys.argv[1])); servers.quiet_environment(space);"
            "os.execv(sys.executable, servers.command(space, 'prefect', int(sys.argv[2])))"
        )
        hidden = ("PREFECT_API_URL", "PREFECT_HOME")
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        with (self.space.folder("services") / "prefect.log").open("ab") as log:
            command = [sys.executable, "-c", code, str(self.space.root), str(self.port)]
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        self.until(lambda: httpx.get(f"{self.api}/health", timeout=2).status_code == 200 or None, 240)

    def stop(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def until(self, what: Callable[[], Any], seconds: float) -> Any:
        end = time.monotonic() + seconds
        while True:
            try:
                if (found := what()) is not None:
                    return found
            except httpx.HTTPError:
                pass
            assert time.monotonic() < end, servers.end_of_log(self.space.folder("services") / "prefect.log")
            time.sleep(0.5)

    def held(self) -> int:
        rows = httpx.post(f"{self.api}/v2/concurrency_limits/filter", json={}, timeout=20).raise_for_status().json()
        [row] = [one for one in rows if one["name"] == "gpus"]
        return int(row["active_slots"])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    made.start()
    try:
        with temporary_settings({PREFECT_API_URL: made.api}):
            yield made
    finally:
        made.stop()


@pytest.mark.slow  # a lease lasts a minute
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("away", [5.0, LEASE_SECONDS + 10.0])
def test_slots_are_held_again_when_the_server_returns(server: Server, away: float) -> None:
    set_limits({"gpus": 1})
    held = HeldSlots("gpus", 1, lambda _line: None)
    held.take()
    assert server.held() == 1
    server.stop()
    time.sleep(away)
    server.start()
    time.sleep(25)  # the server looks for leases that have ended every 15 s; a renewal takes less
    server.until(lambda: server.held() == 1 or None, 15)

    taken = threading.Event()
    other = HeldSlots("gpus", 1, lambda _line: None)
    context = temporary_settings({PREFECT_API_URL: server.api})

    def take() -> None:
        with context:
            other.take()
            taken.set()

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    assert not taken.wait(LEASE_SECONDS + 20), "one GPU, two holders"
    held.give_back()
    assert taken.wait(30), "what was held is free at its end"
    other.give_back()
    assert server.held() == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_limit_that_is_not_there_or_too_small(server: Server) -> None:
    said: list[str] = []
    with pytest.raises(StageError, match=r"2 slots of gpus cannot be had: .*--limit gpus=N"):
        HeldSlots("gpus", 2, said.append).take()
    set_limits({"gpus": 1})
    with pytest.raises(StageError, match="2 slots of gpus cannot be had"):
        HeldSlots("gpus", 2, said.append).take()
    one, two = HeldSlots("gpus", 1, said.append), HeldSlots("gpus", 1, said.append)
    one.take()
    threading.Timer(3.0, one.give_back).start()
    two.take()
    assert said == ["waiting for 1 slots of gpus"]
    two.give_back()
