"""A run that is told to end ends in time, also where a long step in C does not hear the signal.

Python runs a signal's handler between two of its own instructions: a process that is inside one large matrix product
hears nothing until that ends. The wake-up descriptor is written by the handler in C, and a thread of ours reads it.
"""

import os
import signal
import threading
import time

GRACE_SECONDS = 8.0  # for the report of what was done so far; checkpoints are whole at any moment


def end_in_time(grace: float = GRACE_SECONDS) -> None:
    """From now on SIGTERM ends this process within ``grace`` seconds, by SIGKILL if need be. Main thread only."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reading, grace), name="end-in-time", daemon=True).start()


def _watch(reading: int, grace: float) -> None:
    while signal.SIGTERM not in os.read(reading, 64):
        pass
    time.sleep(grace)
    os.kill(os.getpid(), signal.SIGKILL)
