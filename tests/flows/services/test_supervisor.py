"""Children that end, ignore the signal, or leave orphans: none stays down, and none stays behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from flows.services import supervisor as supervise
from flows.services.supervisor import Child, Supervisor

DEAF = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('ready', flush=True)\ntime.sleep(60)"
# A grandchild in a session of its own, as daemons make them; the child ends at once when it is asked.
PARENT = (
    "import subprocess, sys, time\n"
    "one = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(61.5)'], start_new_session=True)\n"
    "print(one.pid, flush=True)\ntime.sleep(60)"
)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise, "PAUSES", (0.1, 0.4))
    monkeypatch.setattr(supervise, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(supervise, "GRACE_SECONDS", 0.5)


def child(tmp_path: Path, name: str, program: str, said: list[str], **more: object) -> Child:
    values: dict[str, object] = {"healthy": lambda: True, "say": said.append} | more
    return Child(
        name, [sys.executable, "-c", program], log=tmp_path / f"{name}.log", environment=dict(os.environ), **values
    )  # type: ignore[arg-type]


def during(supervisor: Supervisor, what: Callable[[], None]) -> None:
    """Runs the supervisor in this thread while ``what`` happens in another."""
    failed: list[BaseException] = []

    def work() -> None:
        try:
            what()
        except BaseException as error:
            failed.append(error)
        finally:
            supervisor.stopping.set()

    thread = threading.Thread(target=work)
    thread.start()
    supervisor.run()
    thread.join()
    if failed:
        raise failed[0]


def until(condition: Callable[[], object], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_what_is_killed_is_started_again_and_the_pause_doubles(tmp_path: Path) -> None:
    said: list[str] = []
    one = child(tmp_path, "one", "import time; print('ready', flush=True); time.sleep(60)", said)
    pids: list[int] = []
    one.started = pids.append

    def what() -> None:
        until(lambda: one.state == "up")
        os.kill(pids[0], signal.SIGKILL)
        until(lambda: len(pids) == 2 and one.state == "up")
        assert (one.restarts, one.problem) == (1, "ended with -9")

    during(Supervisor([one]), what)
    assert one._failures == 1
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_what_does_not_answer_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise, "SILENT_SECONDS", 0.2)
    answers = [True, True]
    one = child(tmp_path, "one", "import time; time.sleep(60)", [], healthy=lambda: bool(answers and answers.pop()))

    def what() -> None:
        until(lambda: one.restarts == 1)
        answers.extend([True] * 1000)
        until(lambda: one.state == "up")

    during(Supervisor([one]), what)
    assert one.problem == "did not answer"


def test_one_waits_for_another(tmp_path: Path) -> None:
    gate: list[bool] = []
    first = child(tmp_path, "first", "import time; time.sleep(60)", [], healthy=lambda: bool(gate))
    second = child(tmp_path, "second", "import time; time.sleep(60)", [], after=("first",))

    def what() -> None:
        until(lambda: first.state == "starting")
        time.sleep(0.4)
        assert second.process is None
        gate.append(True)
        until(lambda: second.state == "up")

    during(Supervisor([first, second]), what)


def test_what_was_there_before_stays(tmp_path: Path) -> None:
    """A supervisor once killed the servers of other tests, which were children of the same process."""
    before = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    ended = subprocess.Popen([sys.executable, "-c", "raise SystemExit(5)"])
    one = child(tmp_path, "one", PARENT, [])
    during(Supervisor([one]), lambda: until(lambda: one.state == "up"))
    assert before.poll() is None
    assert ended.wait(20) == 5  # its exit code was not taken away either
    before.kill()
    before.wait()


def test_nothing_stays_behind(tmp_path: Path) -> None:
    """A child deaf to SIGTERM, and one whose own child has a session of its own."""
    said: list[str] = []
    heard: list[str] = []
    deaf, parent = child(tmp_path, "deaf", DEAF, heard), child(tmp_path, "parent", PARENT, said)
    pids: list[int] = []
    deaf.started = parent.started = pids.append

    def what() -> None:
        until(lambda: said and heard)

    during(Supervisor([deaf, parent]), what)
    assert not any(psutil.pid_exists(pid) for pid in [*pids, int(said[0])])


def test_ctrl_c_of_a_terminal_reaches_no_child(tmp_path: Path) -> None:
    """Each is in a session of its own, so that they end in our order."""
    one = child(tmp_path, "one", "import time; time.sleep(60)", [])
    seen: list[int] = []

    def what() -> None:
        until(lambda: one.state == "up")
        assert one.process is not None
        seen.append(os.getsid(one.process.pid))

    during(Supervisor([one]), what)
    assert seen != [os.getsid(0)]


def test_another_workspaces_services_and_taken_ports_are_faults(tmp_path: Path) -> None:
    """One line each, all at once, and nothing is started."""
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        command = [sys.executable, "-m", "flows.cli", "up", "--workspace", str(tmp_path), "--port", f"mlflow={port}"]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        wrong = subprocess.run([*command, "--port", "web=1", "--port", "app=x"], capture_output=True, text=True,
                               check=False, env=environment)  # fmt: skip
    assert ended.returncode == 2
    lines = ended.stderr.splitlines()
    assert f"--port: port {port}, for mlflow, is taken; end what uses it, or give another: --port mlflow=N" in lines
    assert "Traceback" not in ended.stderr
    assert [line.partition(";")[0] for line in wrong.stderr.splitlines()] == [
        "--port: 'web=1' is no port", "--port: 'app=x' is no port",
    ]  # fmt: skip
