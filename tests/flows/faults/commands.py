"""`rlhf` commands as real processes on one workspace, and what can be done to them."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
HIDDEN = ("PREFECT_API_URL", "PREFECT_HOME", "RLHF_STORE", "PREFECT_PROFILES_PATH", "MLFLOW_TRACKING_URI")
POLL = 0.002  # seconds


def clean_environment() -> dict[str, str]:
    """What a user's shell has: nothing of the tests' own servers."""
    return {name: value for name, value in os.environ.items() if name not in HIDDEN} | {"PYTHONPATH": str(ROOT)}


@dataclass
class Command:
    """A command under way: the leader of a process group of its own."""

    pid: int
    log: Path
    wait_for: Callable[[float | None], int | None]  # the exit code, once it has ended within so many seconds
    wall: float = field(default_factory=time.time)  # when it began
    code: int | None = None

    def ended(self) -> bool:
        return self.wait(0.0) is not None

    def wait(self, seconds: float | None) -> int | None:
        """The exit code; None where it has not ended in time."""
        if self.code is None:
            self.code = self.wait_for(seconds)
        return self.code

    def signal(self, number: int, *, group: bool = True) -> None:
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.wait(60)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """While nothing of it moves."""
        self.signal(signal.SIGSTOP)
        time.sleep(0.01)
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)

    def stacks(self) -> str:
        """Where each of its threads is."""
        dump = [Path(sys.executable).with_name("py-spy"), "dump", "--pid", str(self.pid)]
        return subprocess.run(list(map(str, dump)), capture_output=True, text=True, timeout=60, check=False).stdout

    @property
    def said(self) -> str:
        return self.log.read_text("utf-8", "replace") if self.log.exists() else ""


class Commands:
    """Starts commands on a workspace: with their imports done (:mod:`preloaded`), or each from nothing."""

    def __init__(self, root: Path, logs: Path) -> None:
        self.root, self.logs, self.count = root, logs, 0
        logs.mkdir(parents=True, exist_ok=True)
        self.started: list[Command] = []
        self._codes: dict[int, int] = {}
        self._pids: queue.Queue[int] = queue.Queue()
        self._server: subprocess.Popen[str] | None = None

    def start(self, *arguments: object, preloaded: bool = True, environment: Mapping[str, str] = {}) -> Command:
        """A command at work. ``environment`` comes on top of a clean one."""
        self.count += 1
        log = self.logs / f"{self.count:03d}.log"
        given = [*map(str, arguments), "--workspace", str(self.root)]
        begin = self._fork if preloaded else self._begin
        command = begin(given, log, environment)
        self.started.append(command)
        return command

    def run(self, *arguments: object, seconds: float = 300.0, preloaded: bool = True) -> Command:
        """A command at its end. Fails where it takes longer."""
        command = self.start(*arguments, preloaded=preloaded)
        if command.wait(seconds) is None:
            command.kill()
            raise AssertionError(f"not done after {seconds} s: {command.said[-3000:]}")
        return command

    def close(self) -> None:
        """Ends whatever was started, the workspace's servers among it."""
        for command in self.started:
            if not command.ended():
                command.kill()
        self.end_servers()
        if self._server is not None:
            self._server.kill()
            self._server.wait()
            self._server = None

    def end_servers(self) -> None:
        """Ends the workspace's own servers at once."""
        for path in (self.root / "services").glob("*.json"):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                pid = int(json.loads(path.read_text())["pid"])
                if str(self.root).encode() in Path(f"/proc/{pid}/environ").read_bytes():
                    os.killpg(pid, signal.SIGKILL)

    def _begin(self, arguments: list[str], log: Path, environment: Mapping[str, str]) -> Command:
        # A shell starts what runs in its background deaf to Ctrl-C, and so would be what is started here.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with log.open("ab") as file:
                process = subprocess.Popen(
                    [sys.executable, "-m", "flows.cli", *arguments], stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                    cwd=ROOT, env=clean_environment() | environment, start_new_session=True,
                )  # fmt: skip
        finally:
            signal.signal(signal.SIGINT, before)

        def wait(seconds: float | None) -> int | None:
            try:
                return process.wait(seconds)
            except subprocess.TimeoutExpired:
                return None

        return Command(process.pid, log, wait)

    def _fork(self, arguments: list[str], log: Path, environment: Mapping[str, str]) -> Command:
        server = self._server or self._preload()
        assert server.stdin is not None
        server.stdin.write(json.dumps({"arguments": arguments, "log": str(log), "environment": environment}) + "\n")
        server.stdin.flush()
        pid = self._pids.get(timeout=60)

        def wait(seconds: float | None) -> int | None:
            end = time.monotonic() + (1e9 if seconds is None else seconds)
            while pid not in self._codes and time.monotonic() < end:
                time.sleep(POLL)
            return self._codes.get(pid)

        return Command(pid, log, wait)

    def _preload(self) -> "subprocess.Popen[str]":
        self._server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("preloaded.py")), str(self.root)], text=True, cwd=ROOT,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=clean_environment(),
        )  # fmt: skip
        assert self._server.stdout is not None
        assert json.loads(self._server.stdout.readline()) == {"ready": True}
        threading.Thread(target=self._listen, args=(self._server.stdout,), daemon=True).start()
        return self._server

    def _listen(self, lines: Any) -> None:
        for line in lines:
            told = json.loads(line)
            if "code" in told:
                self._codes[told["pid"]] = told["code"]
            else:
                self._pids.put(told["pid"])
