"""SIGTERM ends a process in time, also one that is inside a long step in C and does not hear it."""

import signal
import subprocess
import sys
import time

import pytest

BEGIN = "from flows.shutdown import end_in_time\nend_in_time(step=0.2, total=0.5)\n"
# Python's own handler waits for the C function to return, which this one does in an hour.
IN_C = "import hashlib\nprint('ready', flush=True)\nhashlib.pbkdf2_hmac('sha256', b'x', b'y', 2**31 - 1)\n"
POLITE = (
    "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
    "print('ready', flush=True)\ntime.sleep(60)\n"
)
# What a trainer does: a step, a look, a checkpoint. `saving` False: it never comes to the end of its step.
TRAINER = """
import signal, sys, time
from flows.shutdown import end_in_time, hear_sigterm, letting_steps_end, saved, told_to_end
from prefect.exceptions import TerminationSignal
from prefect.utilities.engine import can_ack_control_intent, capture_sigterm
signal.signal(signal.SIGTERM, lambda *_: sys.exit(9))
hear_sigterm()
end_in_time(step={step}, total=30)
try:
    with capture_sigterm(), letting_steps_end():
        assert can_ack_control_intent()  # Prefect's runner may say that this is a cancel
        told_to_end()
        print('ready', flush=True)
        for _step in range(600):
            time.sleep(0.1)
            if {saving} and told_to_end():
                print('checkpoint', flush=True)
                saved()
                print('went on', flush=True)
finally:
    print('report', flush=True)
"""


def start(program: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.2)
    return process


@pytest.mark.parametrize(("program", "code"), [(IN_C, -signal.SIGKILL), (POLITE, 7)])
def test_sigterm(program: str, code: int) -> None:
    handler = "import signal\nsignal.signal(signal.SIGTERM, lambda *_: None)\n"  # as Prefect installs one
    process = start(handler + BEGIN + program)
    process.terminate()
    assert process.wait(60) == code


def test_a_step_under_way_ends_with_a_checkpoint() -> None:
    process = start(TRAINER.format(step=30, saving=True))
    process.terminate()
    said, _errors = process.communicate(timeout=60)
    assert said == "checkpoint\nreport\n"
    assert process.returncode == 9  # who had the signal before the flow has it after


def test_a_step_that_takes_too_long_is_not_waited_for() -> None:
    process = start(TRAINER.format(step=0.5, saving=False))
    process.terminate()
    said, _errors = process.communicate(timeout=60)
    assert (said, process.returncode) == ("report\n", 9)


def test_a_second_sigterm_ends_it_at_once() -> None:
    process = start(TRAINER.format(step=30, saving=False))
    process.terminate()
    time.sleep(0.5)
    assert process.poll() is None
    process.terminate()
    said, _errors = process.communicate(timeout=25)
    assert (said, process.returncode) == ("report\n", 9)


# A flow that is told to end while Python runs what drops every error: here, a weak reference's callback.
DROPPED = """
import os, signal, sys, time, weakref
from flows.shutdown import leaving_on_sigterm
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell inherits that it is ignored
from prefect.utilities.engine import capture_sigterm
class Thing: pass
def gone(_reference):
    print('ready', flush=True)
    time.sleep(1.5)
try:
    with leaving_on_sigterm(), {flow}:
        thing = Thing()
        reference = weakref.ref(thing, gone)
        del thing
        for _ in range(600):
            time.sleep(0.1)
except KeyboardInterrupt:
    sys.exit(77)
"""


@pytest.mark.parametrize(
    ("flow", "number", "code"),
    [("capture_sigterm()", signal.SIGTERM, 143), ("open(os.devnull)", signal.SIGTERM, 143),
     ("open(os.devnull)", signal.SIGINT, 77)],
)  # fmt: skip
def test_a_signal_is_not_lost_where_python_drops_errors(flow: str, number: int, code: int) -> None:
    process = start(DROPPED.format(flow=flow))
    process.send_signal(number)
    assert process.wait(20) == code


# A pool's thread that nobody tells to end, as Ctrl-C leaves one: here, begun by hand.
LEFT_ALONE = """
import queue, signal, sys, threading
from flows import cli
signal.signal(signal.SIGINT, signal.default_int_handler)
cli.STOPPED_SECONDS = 1.0
@cli.app.command()
def work():
    threading.Thread(target=queue.Queue().get).start()
    print('ready', flush=True)
    threading.Event().wait()
sys.argv = ['rlhf', 'work']
cli.main()
"""


def test_ctrl_c_ends_a_command_that_has_a_thread_left_which_waits_for_ever() -> None:
    process = start(LEFT_ALONE)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 1
