"""SIGTERM ends a process in time, also one that is inside a long step in C and does not hear it."""

import signal
import subprocess
import sys
import time

import pytest

BEGIN = "from flows.ending import end_in_time\nend_in_time(grace=0.5)\n"
# Python's own handler waits for the C function to return, which this one does in an hour.
IN_C = "import hashlib\nprint('ready', flush=True)\nhashlib.pbkdf2_hmac('sha256', b'x', b'y', 2**31 - 1)\n"
POLITE = (
    "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
    "print('ready', flush=True)\ntime.sleep(60)\n"
)


@pytest.mark.parametrize(("program", "code"), [(IN_C, -signal.SIGKILL), (POLITE, 7)])
def test_sigterm(program: str, code: int) -> None:
    handler = "import signal\nsignal.signal(signal.SIGTERM, lambda *_: None)\n"  # as Prefect installs one
    process = subprocess.Popen([sys.executable, "-c", handler + BEGIN + program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.2)
    process.terminate()
    assert process.wait(60) == code
