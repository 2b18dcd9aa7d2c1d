"""Runs Python that a model wrote: one process for each program, confined before its first line.

The process reads no input, and its output goes nowhere. It has a limit on its time (of the clock and of the processor)
and on its memory; it cannot open a socket, write to or change any file, start another process, or signal one. Limits
are the kernel's (rlimits, and a seccomp filter: see :mod:`alignment.reward.sandbox_child`); where the kernel offers
none (not Linux, or neither x86-64 nor arm64) nothing is run and the stage ends with an error.

What it leaves out: files can be read. It is made for the mistakes and shortcuts of a policy in training; programs from
a stranger belong in a virtual machine.
"""

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

CHILD = Path(__file__).with_name("sandbox_child.py")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended. ``detail`` is its error, where it had one."""

    verdict: Literal["passed", "failed", "timeout"]
    detail: str = ""

    @property
    def passed(self) -> bool:
        return self.verdict == "passed"


def run_all(
    programs: Sequence[tuple[str, str]], *, seconds: float, memory_mb: int, processes: int | None = None
) -> list[Outcome]:
    """The outcomes of (program, tests) pairs, in order, ``processes`` at once.

    A program passes where it and then its tests, in the same namespace, run to their ends. Raises StageError where
    programs cannot be confined here.
    """
    with ThreadPoolExecutor(processes or os.cpu_count() or 1) as pool:
        return list(pool.map(lambda pair: run(*pair, seconds=seconds, memory_mb=memory_mb), programs))


def run(program: str, tests: str, *, seconds: float, memory_mb: int) -> Outcome:
    """Runs one program and its tests. Raises StageError where it cannot be confined here."""
    token = secrets.token_hex(16)  # printed after the tests: a program that ends early does not pass
    request = {"program": program, "tests": tests, "token": token, "seconds": seconds, "memory_mb": memory_mb}
    reader, writer = os.pipe()
    process = None
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(CHILD), str(writer)],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=(writer,), cwd="/",
            env={}, start_new_session=True,
        )  # fmt: skip
        os.close(writer)
        writer = -1
        process.communicate(json.dumps(request).encode(), timeout=seconds)
    except subprocess.TimeoutExpired:
        return Outcome("timeout", f"stopped after {seconds:g} s")
    finally:
        if process is not None and process.poll() is None:
            process.kill()
            process.wait()
        if process is not None and process.stdin is not None:
            process.stdin.close()
        if writer >= 0:
            os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            said = pipe.read(10_000).decode("utf-8", "replace")
    if said.startswith("unconfined:"):
        raise StageError(f"a program of the reward cannot be confined here ({said[11:]}); use Linux on x86-64 or arm64")
    return Outcome("passed") if said == token else Outcome("failed", said or "ended before its tests did")
