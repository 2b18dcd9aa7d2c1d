"""The services beside a run: found where they are, never taken for another workspace's, stopped for good."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment.errors import InputError, StageError
from alignment.workspace import Workspace
from flows.services import servers
from flows.services.ports import reserved_port

DEAD = 2**22 - 3  # above the kernel's own limit on most machines: no process has this id


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace whose services are its own."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    return Workspace(tmp_path / "workspace")


def record(space: Workspace, name: str, url: str, pid: int) -> Path:
    path = space.folder("services") / f"{name}.json"
    path.write_text(json.dumps({"url": url, "pid": pid, "name": name}))
    return path


def test_nothing_is_there_at_first(space: Workspace) -> None:
    assert servers.find(space, "prefect") is None
    assert servers.find(space, "mlflow") is None
    assert not servers.stop(space, "prefect")


def test_a_server_of_ones_own_is_used_and_never_stopped(
    space: Workspace, prefect_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    service = servers.begin(space, "prefect")
    assert service == servers.Service("prefect", prefect_server.removesuffix("/api"), None)
    assert servers.wait(space, service) == service
    assert not servers.stop(space, "prefect")
    assert not (space.root / "services" / "prefect.json").exists()


def test_a_record_of_a_dead_process_is_not_a_service(space: Workspace, prefect_server: str) -> None:
    """Another workspace's server may have taken the port since: it answers, and is not ours."""
    path = record(space, "prefect", prefect_server.removesuffix("/api"), DEAD)
    with urllib.request.urlopen(f"{prefect_server}/health", timeout=10) as answer:
        assert answer.status == 200
    assert servers.find(space, "prefect") is None
    assert not servers.stop(space, "prefect")
    assert not path.exists()


def test_a_process_id_that_is_used_again_is_left_alone(space: Workspace) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True) as other:
        record(space, "prefect", "http://127.0.0.1:1", other.pid)
        assert servers.find(space, "prefect") is None
        assert not servers.stop(space, "prefect")
        time.sleep(0.1)
        assert other.poll() is None
        other.communicate(b"\n")


def test_a_service_that_does_not_start_says_where_its_log_is(space: Workspace) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and nobody listens
        dead = servers.Service("prefect", f"http://127.0.0.1:{taken.getsockname()[1]}", DEAD)
        with pytest.raises(StageError, match=r"the prefect service did not start; its log is .*prefect\.log"):
            servers.wait(space, dead)


@pytest.fixture
def life(space: Workspace) -> Callable[[str], "subprocess.Popen[bytes]"]:
    """Starts a process that holds a service's lock, as the service does for its life."""

    def hold(name: str) -> "subprocess.Popen[bytes]":
        with servers.lifelong_lock(space, name) as descriptor:
            return subprocess.Popen(
                [sys.executable, "-c", f"input()  # {name}"], stdin=subprocess.PIPE, pass_fds=[descriptor],
                start_new_session=True,
            )  # fmt: skip

    return hold


def test_a_server_of_another_machine_is_named_and_no_second_one_started(
    space: Workspace, life: Callable[[str], "subprocess.Popen[bytes]"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process id says nothing of another machine, or container; the lock on the shared folder does."""
    monkeypatch.setattr(servers, "STOP_SECONDS", 0.2)
    with life("prefect") as process:
        servers.note(space, servers.Service("prefect", "http://127.0.0.1:1", process.pid))
        path = space.root / "services" / "prefect.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"host": "elsewhere"}))
        for ask in (servers.find, servers.begin, servers.stop):
            with pytest.raises(InputError, match="the machine elsewhere runs prefect on this workspace, and this one"):
                ask(space, "prefect")
        path.unlink()
        with pytest.raises(InputError, match="a prefect server that is not on record here is at work"):
            servers.begin(space, "prefect")
        assert process.poll() is None
        process.communicate(b"\n")
    assert servers.find(space, "prefect") is None
    with servers.lifelong_lock(space, "prefect"):
        pass


def test_a_service_that_cannot_start_says_the_end_of_its_log(space: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    space.folder("services")
    (space.root / "mlflow.db").write_text("no database" * 100)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(
        StageError, match=r"did not start; its log is .*mlflow\.log\n.*MLflow's database cannot be read"
    ):
        servers.wait(space, servers.begin(space, "mlflow"))
    assert servers.find(space, "mlflow") is None


def test_a_taken_port_is_not_chosen() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        wanted = taken.getsockname()[1]
        with reserved_port(wanted) as (port, _descriptor):
            assert port != wanted


def test_a_port_is_nobody_elses_before_its_server_listens() -> None:
    """Two that look at the same moment see it free; the server that got it takes seconds until it listens."""
    with reserved_port() as (port, descriptor):
        with reserved_port(port) as (other, _descriptor):
            assert other != port
        server = subprocess.Popen(["sleep", "60"], pass_fds=[descriptor])
    try:
        with reserved_port(port) as (other, _descriptor):
            assert other != port  # the process has it for its life
    finally:
        server.kill()
        server.wait()
    with reserved_port(port) as (again, _descriptor):
        assert again == port


def test_what_answers_for_a_server_that_ended_is_not_it(space: Workspace, prefect_server: str) -> None:
    """Another workspace's server got the port first: this one's own could not listen, and ended."""
    service = servers.Service("prefect", prefect_server.removesuffix("/api"), DEAD)
    with pytest.raises(StageError, match="did not start"):
        servers.wait(space, service)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_dashboard_starts_is_found_and_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_recipe: Callable[..., Path]
) -> None:
    """Prefect's server and MLflow's page, by the commands that a user gives; and a run that uses them."""
    root = tmp_path / "workspace"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}

    def rlhf(*arguments: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "flows.cli", *map(str, arguments), "-w", str(root)]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    space = Workspace(root)
    try:
        begun = rlhf("dashboard", "--json")
        assert (begun.returncode, begun.stderr) == (0, "")
        urls = json.loads(begun.stdout)
        assert set(urls) == {"prefect", "mlflow"}
        with urllib.request.urlopen(f"{urls['prefect']}/api/health", timeout=30) as answer:
            assert answer.read() == b"true"
        with urllib.request.urlopen(urls["mlflow"], timeout=30) as answer:
            assert b"MLflow" in answer.read()
        first = servers.find(space, "prefect")
        assert first is not None
        assert first.pid is not None
        assert json.loads(rlhf("dashboard", "--json").stdout) == urls  # found, not started again
        assert servers.find(space, "prefect") == first
        assert servers.begin(space, "prefect") == first

        ended = rlhf("run", make_recipe(tmp_path / "recipe", stages=("sft",)))
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert urls["prefect"] in ended.stdout
        body = json.dumps({"flow_runs": {"name": {"any_": ["tiny-1"]}}}).encode()
        request = urllib.request.Request(
            f"{urls['prefect']}/api/flow_runs/filter", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            [run] = json.loads(answer.read())
        assert run["state_type"] == "COMPLETED"
    finally:
        stopped = rlhf("dashboard", "--stop", "--json")
    assert json.loads(stopped.stdout) == {"prefect": "stopped", "mlflow": "stopped"}
    deadline = time.monotonic() + 60
    while Path(f"/proc/{first.pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not Path(f"/proc/{first.pid}").exists()
    assert servers.find(space, "prefect") is None
    assert json.loads(rlhf("dashboard", "--stop", "--json").stdout) == {
        "prefect": "was not running", "mlflow": "was not running",
    }  # fmt: skip
