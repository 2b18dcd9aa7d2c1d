"""A port of this machine for a server that takes seconds before it listens there.

Until it does, the port looks free to whoever else looks for one: two workspaces that are begun at the same moment were
given the same port, one server could not bind it, and both workspaces used the other's. So a port is reserved by a lock
of this machine that the server's process inherits, and holds for its life.
"""

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import lock_descriptor

from alignment.errors import StageError

LOOPBACK = "127.0.0.1"
TRIES = 50


@contextmanager
def reserved_port(wanted: int = 0) -> Iterator[tuple[int, int]]:
    """A port that is free and that nobody else reserved, ``wanted`` if it is such a one (0: any), and a descriptor.

    The port is reserved for as long as any process has the descriptor open: hand it on with ``pass_fds``. Raises
    StageError where no port is free.
    """
    for attempt in range(TRIES):
        port = _free(wanted if attempt == 0 else 0)
        if port is None:
            continue
        descriptor = os.open(_folder() / f"{port}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if lock_descriptor(descriptor, blocking=False):
                yield port, descriptor
                return
        finally:
            os.close(descriptor)
    raise StageError("no free port on this machine")


def _free(wanted: int) -> int | None:
    with socket.socket() as probe:
        try:
            probe.bind((LOOPBACK, wanted))
        except OSError:
            return None
        return int(probe.getsockname()[1])


def _folder() -> Path:
    """Of this user: what lies in a folder that another made would be the other's to lock."""
    folder = Path(tempfile.gettempdir()) / f"rlhf-flows-ports-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise StageError(f"{folder} belongs to somebody else; remove it, or set TMPDIR to a folder of yours")
    return folder
