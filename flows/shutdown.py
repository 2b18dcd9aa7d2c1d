"""A run that is told to end (SIGTERM: systemd, Kubernetes, a cancel on the dashboard) ends in time, and loses no step.

While a stage trains in this process, the first SIGTERM lets the step under way end; the trainer writes a checkpoint of
that very step, and then the run ends. Where the step takes longer, or a second SIGTERM comes, it ends at once, and the
last checkpoint counts. Stages that do not train end at once: what they finished is kept piece by piece.

Python runs a signal's handler between two of its own instructions: a process that is inside one large matrix product
hears nothing until that ends. The wake-up descriptor is written by the handler in C, and a thread of ours reads it: at
the very last it ends the process by SIGKILL.

An error that is raised while Python runs a callback of a weak reference or a ``__del__`` ends nothing: Python drops it.
Where that befell the error by which a signal ends a run, the signal is heard once more (:func:`heeding_signals`).
"""

import _thread
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

STEP_SECONDS, TOTAL_SECONDS = 20.0, 28.0  # of a run in a terminal or a container: Kubernetes kills after 30
SERVED_STEP_SECONDS, SERVED_TOTAL_SECONDS = 4.0, 8.0  # of a run of a deployment: a cancel is not to hold on for long
LAST_SECONDS = 8.0  # for the report of what was done so far, where it is to end at once; checkpoints are always whole
TERMINATED = 128 + signal.SIGTERM  # the exit code
PATIENT = signal.SIGUSR1  # before a SIGTERM: the step may take as long as that of a run in a terminal


class _Ending:
    """What the handler and the trainer tell each other."""

    steps = False  # a trainer is at work in this process, and looks at `told` after each step
    told = False  # that this is to end
    again = False  # the next SIGTERM is the same one once more


_ending = _Ending()
_late: dict[int, bool] = {}  # descriptors of which SIGTERM was read together with what came before it
AGAIN_SECONDS = 0.05  # after an error was dropped: by then what dropped it is over
PATIENT_MARGIN = 3.0  # seconds less than a run in a terminal has: its worker ends after it


def told_to_end() -> bool:
    """For a trainer, after each step: whether to save now, and end."""
    _ending.steps = True
    return _ending.told


def saved() -> None:
    """For a trainer, after each checkpoint: ends the run where it was told to end."""
    if _ending.told:
        _end()


@contextmanager
def letting_steps_end() -> Iterator[None]:
    """Around a stage in this process, up to its artifact: at its end it heeds at the latest what it was told."""
    try:
        yield
        if _ending.told:
            _end()
    finally:
        _ending.steps = False


def _end() -> NoReturn:
    from prefect.exceptions import TerminationSignal

    _ending.steps = False
    raise TerminationSignal(signal=signal.SIGTERM)


def _on_sigterm(_number: int, _frame: FrameType | None = None) -> None:
    """In Prefect's handler's place, which ends its flow wherever it stands."""
    if _ending.steps and not _ending.told:
        _ending.told = True
        return
    _end()


def hear_sigterm() -> None:
    """From now on flows of this process let a training step end before they do. Main thread only.

    Prefect tells a cancel from a crash by whether its own handler is installed, so ours takes the place of that.
    """
    from prefect.utilities import engine

    with engine._prefect_sigterm_bridge_lock:
        installed = signal.getsignal(signal.SIGTERM) is engine._prefect_sigterm_handler
        engine._prefect_sigterm_handler = _on_sigterm  # type: ignore[assignment]
        if installed:  # a flow is under way
            signal.signal(signal.SIGTERM, _on_sigterm)


def _leave(_number: int, _frame: FrameType | None = None) -> NoReturn:
    raise SystemExit(TERMINATED)


@contextmanager
def leaving_on_sigterm() -> Iterator[None]:
    """For a command that runs a flow: SIGTERM ends the flow as above, and then the command, with the code 143.

    Does nothing outside of the main thread, which is the only one that hears signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _leave)
    hear_sigterm()
    writing = end_in_time()
    try:
        with heeding_signals():
            yield
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.set_wakeup_fd(-1)
        os.close(writing)


@contextmanager
def heeding_signals() -> Iterator[None]:
    """Has a SIGTERM or Ctrl-C be heard once more whose error was raised where Python drops errors."""
    before = sys.unraisablehook

    def dropped(one: "sys.UnraisableHookArgs") -> None:
        number = _number_of(one.exc_value)
        if number is None:
            before(one)
            return
        again = threading.Timer(AGAIN_SECONDS, _hear_again, (number,))
        again.daemon = True
        again.start()

    sys.unraisablehook = dropped
    try:
        yield
    finally:
        sys.unraisablehook = before


def _number_of(error: BaseException | None) -> signal.Signals | None:
    """The signal whose handler raised an error."""
    if isinstance(error, KeyboardInterrupt):
        return signal.SIGINT
    if (isinstance(error, SystemExit) and error.code == TERMINATED) or type(error).__name__ == "TerminationSignal":
        return signal.SIGTERM
    return None


def _hear_again(number: signal.Signals) -> None:
    _ending.again = number == signal.SIGTERM
    _thread.interrupt_main(number)


def end_in_time(step: float = STEP_SECONDS, total: float = TOTAL_SECONDS) -> int:
    """From now on SIGTERM ends this process within ``total`` seconds, by SIGKILL if need be. Main thread only.

    A training step may take ``step`` of them. Returns the descriptor that is written when a signal comes: where it is
    closed before one came, nothing ends any more.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.signal(PATIENT, lambda *_: None)  # the watching thread reads it
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reading, step, total), name="end-in-time", daemon=True).start()
    return writing


def end_within(seconds: float, code: int) -> None:
    """Once the main thread has come to its end, this process ends within ``seconds``, whichever threads it still has.

    Ctrl-C in the moment in which a pool of threads starts one leaves it without anybody who tells it to end, and Python
    waits for it for ever (``concurrent.futures`` writes it down after it has started it).
    """

    def watch() -> None:
        threading.main_thread().join()
        time.sleep(seconds)
        os._exit(code)

    threading.Thread(target=watch, name="end-within", daemon=True).start()


def _watch(reading: int, step: float, total: float) -> None:
    while (heard := _heard(reading, None)) != signal.SIGTERM:
        if heard is None:  # closed
            os.close(reading)
            return
        if heard == PATIENT:
            step, total = STEP_SECONDS, TOTAL_SECONDS - PATIENT_MARGIN
    now = time.monotonic()
    nudge, end = now + step, now + total
    while (now := time.monotonic()) < end:
        heard = _heard(reading, max(0.0, min(nudge, end) - now))
        if heard == PATIENT:
            nudge, end = now + STEP_SECONDS, now + TOTAL_SECONDS - PATIENT_MARGIN
        elif heard and _ending.again:
            _ending.again = False
        elif heard:  # again: at once
            nudge, end = end, min(end, time.monotonic() + LAST_SECONDS)
        elif heard is None:
            time.sleep(end - now)  # the process has come that far; it may still take its time
        elif time.monotonic() >= nudge:
            nudge = end
            if _ending.steps:
                os.kill(os.getpid(), signal.SIGTERM)  # the second
    os.kill(os.getpid(), signal.SIGKILL)


def _heard(reading: int, seconds: float | None) -> int | None:
    """SIGTERM or :data:`PATIENT`, whichever comes within so many seconds (None: whenever it may be), else 0; None where
    there is no more to hear. A SIGTERM that came together with the other is heard after it."""
    if _late.pop(reading, False):
        return int(signal.SIGTERM)
    ready, _writing, _errors = select.select([reading], [], [], seconds)
    if not ready:
        return 0
    signals = os.read(reading, 64)
    if PATIENT in signals:
        _late[reading] = signal.SIGTERM in signals
        return int(PATIENT)
    if signal.SIGTERM in signals:
        return int(signal.SIGTERM)
    return 0 if signals else None
