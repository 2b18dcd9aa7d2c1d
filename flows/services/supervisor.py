"""Processes that are to go on: started in order, looked after, started again when they end, and all ended at the end.

A child that ends or no longer answers is started again after a pause that doubles from a second to a minute; a minute
of health forgives what was before. At the end each child is asked first and killed after its grace, and so is whatever
it had started: a child's orphans become this process's own children (PR_SET_CHILD_SUBREAPER), so none is lost.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

from alignment.errors import InputError

PAUSES = (1.0, 60.0)  # seconds before a restart: the first, and the most
FORGIVEN_SECONDS = 60.0
START_SECONDS = 180.0  # for a child to answer at all
SILENT_SECONDS = 45.0  # without an answer, after which a child is started again
LOOK_SECONDS = 2.0
GRACE_SECONDS = 32.0  # a worker whose run writes a checkpoint first takes up to 28
PR_SET_CHILD_SUBREAPER = 36
State = Literal["waiting", "starting", "up", "down", "ended"]


@dataclass
class Child:
    """One process. ``healthy`` asks it; ``after`` names children that must be up before it starts."""

    name: str
    command: Sequence[str]
    healthy: Callable[[], bool]
    log: Path
    environment: dict[str, str]
    url: str = ""
    after: tuple[str, ...] = ()
    started: Callable[[int], None] = lambda _pid: None  # told the process's id
    inherits: Callable[[], AbstractContextManager[list[int]]] = lambda: contextlib.nullcontext([])  # open descriptors
    say: Callable[[str], None] | None = None  # hears each line of its standard output, which then is in no log
    state: State = "waiting"
    restarts: int = 0
    problem: str = ""  # why it was last started again
    process: subprocess.Popen[bytes] | None = None
    _failures: int = 0
    _since: float = 0.0  # when it was started, or first up
    _heard: float = 0.0
    _looked: float = float("-inf")
    _again: float = 0.0  # not before

    def step(self, now: float) -> None:
        """Does what is to be done for this child now."""
        if self.process is None:
            if now >= self._again:
                self._start(now)
            return
        code = self.process.poll()
        if code is not None:
            self._restart(now, f"ended with {code}")
            return
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        if self.healthy():
            self._heard = now
            if self.state != "up":
                self.state, self._since = "up", now
            elif now - self._since > FORGIVEN_SECONDS:
                self._failures = 0
        elif now - self._heard > (SILENT_SECONDS if self.state == "up" else START_SECONDS):
            self.end(grace=5.0)
            self._restart(now, "did not answer")

    def _start(self, now: float) -> None:
        try:
            self._launch()
        except InputError as error:  # what it needs is held by another process
            self._restart(now, str(error))
            return
        self.state, self._since, self._heard = "starting", now, now

    def _launch(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log, self.inherits() as descriptors:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE if self.say else log, stderr=log,
                env=self.environment, start_new_session=True, pass_fds=descriptors,
            )  # fmt: skip
        if self.say is not None and self.process.stdout is not None:
            threading.Thread(target=_pass_on, args=(self.process.stdout, self.say), daemon=True).start()
        self.started(self.process.pid)

    def _restart(self, now: float, why: str) -> None:
        if self.process is not None:
            _end_group(self.process.pid, signal.SIGKILL)  # what it left behind would hold its port
        self.process, self.state, self.problem = None, "down", why
        self.restarts += 1
        self._again = now + min(PAUSES[0] * 2**self._failures, PAUSES[1])
        self._failures += 1

    def ask(self) -> None:
        """Asks the process to end. It alone is asked: it knows in which order its own have to end."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def end(self, grace: float) -> None:
        """Ends the process and its group: what was asked is given ``grace`` seconds."""
        if self.process is None:
            return
        self.ask()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(grace)
        pid = self.process.pid
        if _end_group(pid, signal.SIGTERM):
            deadline = time.monotonic() + 3.0
            while _end_group(pid, 0) and time.monotonic() < deadline:
                self.process.poll()
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(-pid, os.WNOHANG)  # orphans of the group, adopted: dead, they still are in it
                time.sleep(0.05)
            _end_group(pid, signal.SIGKILL)
        self.process.wait()
        self.state = "ended"


@dataclass
class Supervisor:
    """Looks after its children until it is told to stop."""

    children: list[Child]
    stopping: threading.Event = field(default_factory=threading.Event)
    _others: set[int] = field(default_factory=set)  # children that this process had before, which are none of ours

    def run(self, each: Callable[[], None] = lambda: None) -> None:
        """Starts the children and looks after them; ``each`` is called after every look. Ends them all at the end."""
        self._others = own_children()
        adopt_orphans(True)
        try:
            while not self.stopping.is_set():
                for child in self.children:
                    if child.process is not None or self._may_start(child):
                        child.step(time.monotonic())
                reap(keep=self._others | {child.process.pid for child in self.children if child.process})
                each()
                self.stopping.wait(0.25)
        finally:
            self.end()
            adopt_orphans(False)

    def _may_start(self, child: Child) -> bool:
        return all(one.state == "up" for one in self.children if one.name in child.after)

    @property
    def is_up(self) -> bool:
        """Whether every child answers."""
        return all(child.state == "up" for child in self.children)

    def end(self) -> None:
        """Ends the children, the last started first, and then whatever is left of theirs.

        Those that stand on others are asked at once: each may take its whole grace, and the machine that stops does not
        wait for all of them in turn.
        """
        for child in self.children:
            if child.after:
                child.ask()
        for child in reversed(self.children):
            child.end(GRACE_SECONDS)
        for _ in range(100):
            left = own_children() - self._others
            if not left:
                return
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            reap(keep=self._others)
            time.sleep(0.02)


def adopt_orphans(wanted: bool) -> None:
    """Whether orphans among this process's descendants become its own children."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0)


def own_children() -> set[int]:
    """The ids of this process's children, adopted orphans included."""
    me, found = os.getpid(), set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == me:
            found.add(int(path.parent.name))
    return found


def reap(keep: set[int] | frozenset[int] = frozenset()) -> None:
    """Takes the exit codes of adopted orphans that have ended; ``keep`` are children whose code somebody waits for."""
    for pid in own_children() - keep:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def _end_group(pid: int, number: int) -> bool:
    """Sends a signal to a process group (0 only asks). Says whether there was one."""
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _pass_on(lines: IO[bytes], say: Callable[[str], None]) -> None:
    with lines:
        for line in lines:
            say(line.decode("utf-8", "replace").rstrip("\n"))
