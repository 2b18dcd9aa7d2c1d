"""Runs Python that a model wrote, and its tests: in two processes, each confined before its first line.

The answer's process runs the program; the tests' process runs the tests and asks the first for every name that they do
not define. What comes back over the pipe between them is rebuilt from its parts (:mod:`alignment.reward.sandbox_wire`),
so an answer can bring no notion of its own of what is equal, and finds in its process neither frames nor memory of the
tests, nor the pipe to which the verdict is written.

A process reads no input, and its output goes nowhere. It has a limit on its time (of the clock and of the processor)
and on its memory; it cannot open a socket or a file, start another process, or signal one. Modules of the standard
library that the source names are imported beforehand. Limits are the kernel's (rlimits, and a seccomp filter: see
:mod:`alignment.reward.sandbox_child`); where the kernel offers none (not Linux, or neither x86-64 nor arm64) nothing is
run and the stage ends with an error.

What tests cannot do: see an object of the answer's as equal to a built-in value, or calculate with both, unless they
made it themselves by calling its class; use an answer's function under the name of one of Python's own.
"""

import contextlib
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from alignment.errors import StageError
from alignment.reward import sandbox_answer, sandbox_child, sandbox_tests, sandbox_wire

CODE = (sandbox_child, sandbox_answer, sandbox_tests, sandbox_wire)  # loaded by path in there; its changes count here
CHILD = Path(str(sandbox_child.__file__))


@dataclass(frozen=True, slots=True)
class ProgramResult:
    """How a program ended. ``detail`` is its error, where it had one."""

    verdict: Literal["passed", "failed", "timeout"]
    detail: str = ""

    @property
    def passed(self) -> bool:
        return self.verdict == "passed"


def run_all(
    programs: Sequence[tuple[str, str]], *, seconds: float, memory_mb: int, processes: int | None = None
) -> list[ProgramResult]:
    """The outcomes of (program, tests) pairs, in order, ``processes`` at once.

    A program passes where it and then its tests, to which its names are known, run to their ends. Raises StageError
    where programs cannot be confined here.
    """
    with ThreadPoolExecutor(processes or os.cpu_count() or 1) as pool:
        return list(pool.map(lambda pair: run(*pair, seconds=seconds, memory_mb=memory_mb), programs))


def run(program: str, tests: str, *, seconds: float, memory_mb: int) -> ProgramResult:
    """Runs one program and its tests. Raises StageError where they cannot be confined here."""
    token = secrets.token_hex(16)  # written after the tests: tests that end early are not passed
    limits = {"seconds": seconds, "memory_mb": memory_mb}
    asked, answered, confined, verdict = (os.pipe() for _ in range(4))
    ends = {*asked, *answered, *confined, *verdict}
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for role, request, own in (
            ("answer", {"source": program}, (asked[0], answered[1], confined[1])),
            ("tests", {"source": tests, "token": token}, (answered[0], asked[1], verdict[1])),
        ):
            processes.append(_start(role, json.dumps(request | limits).encode(), own))
            for end in own:
                os.close(end)
                ends.discard(end)
        processes[1].wait(seconds)
    except subprocess.TimeoutExpired:
        return ProgramResult("timeout", f"stopped after {seconds:g} s")
    finally:
        for process in processes:
            process.kill()
            process.wait()
        told = [_rest(end) for end in (confined[0], verdict[0])] if len(processes) == 2 else []
        for end in ends - ({confined[0], verdict[0]} if told else set()):
            os.close(end)
    if unconfined := [text[11:] for text in told if text.startswith("unconfined:")]:
        raise StageError(
            f"a program of the reward cannot be confined here ({unconfined[0]}); use Linux on x86-64 or arm64"
        )
    return (
        ProgramResult("passed")
        if told[1] == token
        else ProgramResult("failed", told[1] or "ended before its tests did")
    )


def _start(role: str, request: bytes, ends: tuple[int, int, int]) -> "subprocess.Popen[bytes]":
    """One of the two processes, with its source on its standard input and no pipes but its own."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(CHILD), role, *map(str, ends)],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=ends, cwd="/", env={},
        start_new_session=True,
    )  # fmt: skip
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin as source:
        source.write(request)
    return process


def _rest(end: int) -> str:
    """What was written to a pipe whose writers are gone."""
    with os.fdopen(end, "rb") as pipe:
        return pipe.read(10_000).decode("utf-8", "replace")
