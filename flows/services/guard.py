"""A small process beside one that runs or serves a recipe: it sees the other's death, however that one died.

SIGKILL and the kernel's out-of-memory killer leave no time for words. The guard reads a pipe whose only writer is the
process that it watches: the pipe's end is that process' end. Then it looks at what is to be said (records and outbox,
:mod:`flows.services.server_outbox`), tells the server, and goes on telling it for a while where that is away itself.
"""

import contextlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.services.process_records import ProcessIdentity
from flows.services.server_outbox import deliver, sweep

PATIENCE_SECONDS = 3600.0  # for a server that is away; after that the next command tells it
LOOK_SECONDS = 5.0
PAUSES = (1.0, 30.0)  # seconds between two tries: the first, and the most


@contextmanager
def guarded(root: Path) -> Iterator[None]:
    """Has a guard watch over this process for as long as the context lasts."""
    reading, writing = os.pipe()
    try:
        command = [sys.executable, "-m", "flows.services.guard", str(root), str(os.getpid())]
        process = subprocess.Popen(
            command, stdin=reading, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
    except OSError:  # no more processes: what is only to be said must not stop the work
        process = None
    finally:
        os.close(reading)
    try:
        yield
    finally:
        os.close(writing)
        if process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.0)  # it may have something to tell: nobody waits for that
            process.returncode = process.returncode if process.returncode is not None else 0  # no warning about it


def main(root: Path, owner: int) -> None:
    """Waits for the end of process ``owner``, then says what is to be said."""
    identity = ProcessIdentity.of(owner)
    while identity is not None and not identity.is_gone:  # a child that it forked may hold the pipe open
        ready, _writing, _errors = select.select([0], [], [], LOOK_SECONDS)
        if ready and not os.read(0, 64):
            break
    deadline, pause = time.monotonic() + PATIENCE_SECONDS, PAUSES[0]
    time.sleep(0.2)  # the dead process is to be gone from the process table
    while root.is_dir():  # a workspace that was moved or removed since is not begun anew
        sweep(root)
        if not deliver(root) or time.monotonic() >= deadline:
            break
        time.sleep(pause)
        pause = min(pause * 1.5, PAUSES[1])


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
