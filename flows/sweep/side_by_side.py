"""Runs of a sweep, one after another in this process, or several at once as processes of their own.

A stage that two of them need is made by one: the others wait for its key's lock, and find it in the cache.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from alignment.errors import InputError, StageError
from alignment.recipe.resources import Resources
from alignment.workspace import Workspace
from flows.console import PlainConsole, styled
from flows.failures import explain, keep_traceback
from flows.pipeline.launch import launch
from flows.services import servers
from flows.sweep.cells import SweepCell

LOOK_SECONDS = 0.2  # between two looks at the processes
READ_SECONDS = 5.0  # for what an ended run has said, to be passed on
END_SECONDS = 27.0  # a run that is told to end does so in 28 at most; see flows.shutdown
Done = Callable[[SweepCell, int], None]
# The process dies with the one that started it: SIGTERM comes, and it saves its step. The command follows.
TIED = (
    "import ctypes, os, signal, sys\n"
    "ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)\n"
    "os.getppid() == int(sys.argv[1]) or sys.exit(1)\n"
    "os.execv(sys.argv[2], sys.argv[2:])\n"
)


def run_cells(
    cells: Sequence[SweepCell],
    workspace: Workspace,
    console: PlainConsole,
    *,
    parallel: int,
    logs: Path,
    done: Done,
    left_out: Callable[[SweepCell], bool],
) -> None:
    """Runs them all; ``done`` is told of each when it has ended, with its exit code. A failure stops no other variant;
    what is ``left_out`` when its turn comes, because its variant has failed with another seed, is not run."""
    if parallel == 1 or len(cells) == 1:
        for cell in cells:
            if left_out(cell):
                continue
            console.print(styled("\n", (cell.name, "bold")))
            done(cell, _here(cell, workspace, console))
        return
    pool = Processes(workspace, console, parallel, logs)
    try:
        pool.run(cells, done, left_out)
    finally:
        pool.end()


def _here(cell: SweepCell, workspace: Workspace, console: PlainConsole) -> int:
    """Runs a cell in this process, as ``rlhf run`` would."""
    try:
        server = servers.begin(workspace, "prefect")
        return launch(cell.resolved, workspace, server, None, None, [], console, time.monotonic())
    except InputError as error:
        console.print("\n".join(map(str, error.faults)))
        return 2
    except StageError as error:
        console.print(str(error))
        return 1
    except Exception as error:
        line, code = explain(error)
        console.print(f"{line}; {keep_traceback(error)}")
        return code


class Processes:
    """Several ``rlhf run`` at once. What each says is passed on with its name before it, and kept in a file."""

    def __init__(self, workspace: Workspace, console: PlainConsole, parallel: int, logs: Path) -> None:
        self.workspace, self.console, self.parallel, self.logs = workspace, console, parallel, logs
        self._running: dict[int, tuple[SweepCell, subprocess.Popen[bytes], threading.Thread]] = {}

    def run(self, cells: Sequence[SweepCell], done: Done, left_out: Callable[[SweepCell], bool]) -> None:
        """Runs them all, those first that come first."""
        servers.wait(self.workspace, servers.begin(self.workspace, "prefect"), self.console.print)
        left = list(cells)
        while left or self._running:
            left = [cell for cell in left if not left_out(cell)]
            while left and len(self._running) < self.parallel:
                place = next(place for place in range(self.parallel) if place not in self._running)
                self._start(left.pop(0), place)
            for place, (cell, process, reader) in list(self._running.items()):
                if (code := process.poll()) is not None:
                    reader.join(READ_SECONDS)  # a process that it left behind may hold its output open
                    del self._running[place]
                    done(cell, code)
            time.sleep(LOOK_SECONDS)

    def end(self) -> None:
        """Tells whatever still runs to end, and waits until it has: each saves the step that it is at."""
        for _cell, process, _reader in self._running.values():
            process.send_signal(signal.SIGTERM)
        limit = time.monotonic() + END_SECONDS
        for _cell, process, _reader in self._running.values():
            try:
                process.wait(max(0.1, limit - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()

    def _start(self, cell: SweepCell, place: int) -> None:
        command = [sys.executable, "-m", "flows.cli", "run", str(cell.file), "-w", str(self.workspace.root)]
        process = subprocess.Popen(
            [sys.executable, "-c", TIED, str(os.getpid()), *command],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=os.environ | gpus_of(place, cell.resolved.recipe.resources), start_new_session=True,
        )  # fmt: skip
        assert process.stdout is not None
        self.console.print(styled((cell.name, "bold"), " begins"))
        reader = threading.Thread(target=self._pass_on, args=(cell, process.stdout), daemon=True)
        reader.start()
        self._running[place] = cell, process, reader

    def _pass_on(self, cell: SweepCell, lines: IO[bytes]) -> None:
        self.logs.mkdir(parents=True, exist_ok=True)
        with lines, (self.logs / f"{cell.file.stem}.log").open("ab") as log:
            for line in lines:
                log.write(line)
                log.flush()
                text = line.decode("utf-8", "replace").rstrip("\n")
                if text:
                    self.console.print(f"[{cell.name}] {text}")


def gpus_of(place: int, resources: Resources) -> dict[str, str]:
    """The environment that gives a run its own GPUs, where several of this machine are shared out among runs."""
    from alignment.models.device import pick_device

    if resources.address not in (None, "local") or pick_device(resources).type != "cuda":
        return {}
    import torch

    each = max(1, round(resources.workers * (resources.gpus_per_worker or 1)))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
    own = [names[(place * each + one) % len(names)] for one in range(each)]
    return {"CUDA_VISIBLE_DEVICES": ",".join(dict.fromkeys(own))}


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """One process works on a sweep. Raises InputError where another does."""
    from filelock import FileLock, Timeout

    from alignment.errors import Fault

    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            [Fault(f"another process works on the sweep in {folder}", "wait for it, or stop it")]
        ) from None
    try:
        yield
    finally:
        lock.release()
