"""Records of processes, the outbox and the guard: processes are really killed, and servers really answer."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from alignment.stage import Progress
from alignment.workspace import Workspace
from flows.monitoring import prometheus as metrics
from flows.monitoring.background import BackgroundSender, server_writes
from flows.monitoring.prometheus import StageMetrics, exposition, stage_families
from flows.services.process_records import ProcessIdentity
from flows.services.process_registration import at_work
from flows.services.server_outbox import ServerRequest, deliver, post, state_message, sweep, unmade_message

WORK = """
import sys, time, pathlib
from flows.services.guard import guarded
from flows.services.process_registration import at_work
root = pathlib.Path(sys.argv[1])
with guarded(root), at_work(root, sys.argv[2], ours=False) as me:
    me.begin("run-1")
    me.serve("deployment-1")
    print("ready", flush=True)
    time.sleep(float(sys.argv[3]))
"""


class Prefect:
    """A server that keeps what it is sent; flow runs are in ``state``; ``status`` is what it answers otherwise."""

    def __init__(self) -> None:
        self.got: list[tuple[str, str, Any]] = []
        self.state, self.status = "RUNNING", 200
        self.runs: dict[str, str] = {}  # ids by name
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def _take(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                if self.command != "GET":
                    outer.got.append((self.command, self.path, body))
                self.send_response(outer.status)
                self.end_headers()
                reply: Any = {"state_type": outer.state}
                if self.path.endswith("/flow_runs/filter"):
                    asked = body["flow_runs"]["name"]["any_"] if body else []
                    reply = [{"id": outer.runs[name]} for name in asked if name in outer.runs]
                self.wfile.write(json.dumps(reply).encode())

            def do_GET(self) -> None:
                self._take()

            def do_POST(self) -> None:
                self._take()

            def do_PATCH(self) -> None:
                self._take()

            def log_message(self, *_: Any) -> None:
                """Says nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.api = f"http://127.0.0.1:{self.server.server_address[1]}/api"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def states(self, flow_run: str) -> list[str]:
        """The states that a flow run was set to."""
        return [body["state"]["type"] for _method, path, body in self.got if path.endswith(f"/{flow_run}/set_state")]


@pytest.fixture
def prefect() -> Iterator[Prefect]:
    made = Prefect()
    yield made
    made.server.shutdown()
    made.server.server_close()


def begin(root: Path, api: str, seconds: float) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", WORK, root, api, str(seconds)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_process_is_known_for_good() -> None:
    me = ProcessIdentity.of(os.getpid())
    assert me is not None
    assert not me.is_gone
    assert ProcessIdentity(me.pid, me.started - 1, me.boot, me.host).is_gone  # the id was used again
    assert ProcessIdentity(me.pid, me.started, "another boot", me.host).is_gone
    assert not ProcessIdentity(me.pid, me.started - 1, me.boot, "another-host").is_gone  # nobody here can know
    child = subprocess.Popen(["sleep", "0"])
    time.sleep(0.5)
    assert ProcessIdentity.of(child.pid) is None  # a zombie is at no work
    child.wait()


def test_a_killed_process_is_told_by_its_guard(tmp_path: Path, prefect: Prefect) -> None:
    process = begin(tmp_path, prefect.api, 60)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while len(prefect.got) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    told = {path: body for _method, path, body in prefect.got}
    assert told["/api/flow_runs/run-1/set_state"]["state"]["type"] == "CRASHED"
    assert told["/api/deployments/deployment-1"] == {"paused": True}


def test_one_that_ends_well_leaves_nothing_to_say(tmp_path: Path, prefect: Prefect) -> None:
    process = begin(tmp_path, prefect.api, 0)
    assert process.wait(20) == 0
    time.sleep(1.5)
    assert prefect.got == []
    assert not list(tmp_path.glob("services/processes/*.json"))


def test_a_run_that_has_ended_since_is_left_as_it_is(tmp_path: Path, prefect: Prefect) -> None:
    prefect.state = "COMPLETED"
    post(tmp_path, state_message("r", "CRASHED", "Crashed", "killed", force=False, api=prefect.api, ours=False))
    assert deliver(tmp_path) == 0
    assert prefect.got == []
    post(tmp_path, state_message("r", "COMPLETED", "Promoted", "v3", force=True, api=prefect.api, ours=False))
    assert deliver(tmp_path) == 0
    assert [body["state"]["name"] for _method, _path, body in prefect.got] == ["Promoted"]


def test_what_is_not_taken_waits_in_order_and_is_sent_once(tmp_path: Path, prefect: Prefect) -> None:
    prefect.status = 503
    mark = tmp_path / "announced" / "policy-v1"
    for number in range(3):
        where: dict[str, Any] = {"api": prefect.api, "ours": False}
        post(tmp_path, ServerRequest("POST", "/events", [number], mark=str(mark), text="tiny-1\n", **where))
    assert deliver(tmp_path) == 3
    assert not mark.exists()
    prefect.got.clear()
    prefect.status = 200
    assert deliver(tmp_path) == 0
    assert [body for _method, _path, body in prefect.got] == [[0], [1], [2]]
    assert mark.read_text() == "tiny-1\n"
    assert deliver(tmp_path) == 0
    assert len(prefect.got) == 3


def test_nothing_is_said_to_another_workspaces_server(tmp_path: Path, prefect: Prefect) -> None:
    """The workspace's own server has ended, and another one has its port."""
    post(tmp_path, state_message("r", "CRASHED", "Crashed", "killed", force=True, api=prefect.api, ours=True))
    (tmp_path / "services" / "prefect.json").write_text(json.dumps({"url": prefect.api[:-4], "pid": 2**22 - 3}))
    assert deliver(tmp_path) == 1
    assert prefect.got == []


def test_a_deployment_that_is_served_again_is_not_paused_by_what_waited(tmp_path: Path, prefect: Prefect) -> None:
    post(tmp_path, ServerRequest("PATCH", "/deployments/d", {"paused": True}, api=prefect.api, ours=False))
    with at_work(tmp_path, prefect.api, ours=False) as me:
        me.serve("d")
        assert deliver(tmp_path) == 0
    assert prefect.got == []


def test_metrics_of_a_killed_process_are_nobodys(tmp_path: Path) -> None:
    code = (
        "import sys, os, signal; from pathlib import Path; from alignment.workspace import Workspace\n"
        "from alignment.stage import Progress; from flows.monitoring.prometheus import StageMetrics\n"
        "StageMetrics(Workspace(Path(sys.argv[1])), 'sft', {}).write(Progress(3, 10, {}, 5))\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run([sys.executable, "-c", code, tmp_path], check=False)
    assert ended.returncode == -signal.SIGKILL
    space = Workspace(tmp_path)
    own = StageMetrics(space, "dpo", {})
    own.write(Progress(1, 2, {}, 5))
    assert (tmp_path / "metrics" / "sft.prom").exists()
    assert 'stage="sft"' not in exposition(stage_families(space))
    assert 'stage="dpo"' in exposition(stage_families(space))
    sweep(tmp_path)
    assert not (tmp_path / "metrics" / "sft.prom").exists()
    assert (tmp_path / "metrics" / "dpo.prom").exists()
    own.close()


def test_metrics_that_cannot_be_written_stop_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "SECONDS", 0.0)
    own = StageMetrics(Workspace(tmp_path), "sft", {})
    (tmp_path / "metrics").rename(tmp_path / "gone")
    (tmp_path / "metrics").write_text("a file where the folder was")
    own.write(Progress(1, 2, {}, 5))
    own.close()
    assert (tmp_path / "metrics").read_text() == "a file where the folder was"


def test_a_terminal_that_is_gone_stops_nothing() -> None:
    """A closed pipe, as after `rlhf run | head`, written to by the display; rich's own console would end it."""
    code = (
        "import sys\n"
        "from flows.console import PlainConsole\n"
        "from flows.monitoring.terminal import Terminal\n"
        "from flows.monitoring.progress import GuardedListener\n"
        "shown = GuardedListener(Terminal({'sft': 'sft'}, PlainConsole()))\n"
        "sys.stdin.readline()\n"
        "shown.stage_started('sft', 'sft')\n"
        "for _ in range(3):\n"
        "    shown.stage_finished('sft', status='completed', cached=False, seconds=1.0, summary='x' * 100000)\n"
        "shown.warned('still here')\n"
        "print('worked on', file=sys.stderr)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdout.close()
    process.stdin.write("\n")
    process.stdin.close()
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait(30) == 0, said
    assert said == "worked on\n"


def test_the_background_keeps_the_newest_and_survives_what_fails(
    prefect: Prefect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.monitoring.background.server_answers", lambda: True)
    background, done = BackgroundSender(), []
    held = threading.Event()
    background.later(lambda: held.wait(10) and None)
    for number in range(50):
        background.later(lambda number=number: done.append(number), key="bar")
    background.later(lambda: 1 / 0)
    background.later(lambda: done.append("last"))
    held.set()
    background.drain(10)
    assert done == [49, "last"]


@pytest.fixture
def hanging() -> Iterator[str]:
    """A server that takes connections and never answers, as one whose database is locked does."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(16)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/api"


def test_a_server_that_hangs_is_waited_for_once(hanging: str, tmp_path: Path) -> None:
    for number in range(4):
        post(tmp_path, ServerRequest("POST", f"/flow_runs/{number}/set_state", {}, api=hanging, ours=False))
    began = time.monotonic()
    assert deliver(tmp_path) == 4  # and none is lost
    assert time.monotonic() - began < 9  # of 5 s each


def test_a_server_that_answers_and_does_not_write_is_told_from_one_that_does(prefect: Prefect, hanging: str) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: prefect.api}):
        assert server_writes("run-1")
        assert prefect.got == [("PATCH", "/api/flow_runs/run-1", {})]
        prefect.status = 500  # a full disk
        assert not server_writes("run-1")
    with temporary_settings({PREFECT_API_URL: hanging}):  # a locked database
        assert not server_writes("run-1", seconds=0.5)


MAKES = """
import os, signal, sys, pathlib
from flows.services.guard import guarded
from flows.services.process_registration import at_work, making_run
root, how = pathlib.Path(sys.argv[1]), sys.argv[3]
with guarded(root), at_work(root, sys.argv[2], ours=False):
    with making_run("starting-1") as made:
        if "made" in how:
            made("run-1")
        if "killed" in how:
            os.kill(os.getpid(), signal.SIGKILL)
        raise KeyboardInterrupt
"""


@pytest.mark.parametrize("how", ["killed", "interrupted", "killed, made", "interrupted, made"])
def test_a_run_that_was_made_and_not_begun_is_told(tmp_path: Path, prefect: Prefect, how: str) -> None:
    """The process may end while the server makes the run: it knows a name, and no id."""
    prefect.state, prefect.runs = "PENDING", {"starting-1": "run-1"}
    ended = subprocess.run(
        [sys.executable, "-c", MAKES, str(tmp_path), prefect.api, how], check=False, capture_output=True
    )
    assert ended.returncode != 0
    deadline = time.monotonic() + 30
    while not prefect.states("run-1") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert prefect.states("run-1") == ["CRASHED"]
    assert list((tmp_path / "services" / "processes").glob("*.json")) == []


def test_a_run_that_the_server_never_made_is_asked_for_a_while(
    tmp_path: Path, prefect: Prefect, monkeypatch: pytest.MonkeyPatch
) -> None:
    post(tmp_path, unmade_message("starting-2", api=prefect.api, ours=False))
    assert deliver(tmp_path) == 1  # it may be on its way
    prefect.runs = {"starting-2": "run-2"}
    assert deliver(tmp_path) == 0
    assert prefect.states("run-2") == ["CRASHED"]
    post(tmp_path, unmade_message("starting-3", api=prefect.api, ours=False))
    monkeypatch.setattr("flows.services.server_outbox.ARRIVES_SECONDS", 0.0)
    assert deliver(tmp_path) == 0
