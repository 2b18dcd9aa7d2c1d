"""`rlhf rate` told to end: so does the Prefect server that it started, and none that others need."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from flows.services.process_registration import at_work

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def _begin(root: Path) -> tuple[subprocess.Popen[bytes], int]:
    """`rlhf rate` on a workspace, once it answers, and the process id of the Prefect server beside it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    command = [sys.executable, "-m", "flows.cli", "rate", "--port", port, "--workspace", str(root)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 300
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200:
                return process, int(json.loads((root / "services/prefect.json").read_text())["pid"])
        except httpx.HTTPError:
            time.sleep(0.3)
    process.kill()
    raise AssertionError("the app did not start")


def _gone(pid: int, seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.2)
    return False


def test_sigterm_leaves_no_prefect_server(tmp_path: Path) -> None:
    process, server = _begin(tmp_path / "w")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    assert _gone(server)


def test_a_server_that_a_run_has_come_to_use_stays(tmp_path: Path) -> None:
    process, server = _begin(tmp_path / "w")
    try:
        with at_work(tmp_path / "w", "", ours=True):  # this process runs a recipe there
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 128 + signal.SIGTERM
            assert not _gone(server, seconds=3)
    finally:
        os.killpg(server, signal.SIGTERM)
    assert _gone(server)
