"""Programs that a model wrote: what they may use, and what they may not touch."""

import os
import time
from pathlib import Path

import pytest

from alignment.reward.sandbox import run, run_all

TESTS = "assert answer == 42"


def outcome(program, *, seconds=20.0, memory_mb=256):
    return run(program, TESTS, seconds=seconds, memory_mb=memory_mb)


@pytest.mark.parametrize(
    "program",
    [
        "answer = 42",
        "import collections, heapq, itertools, json, math, random, re\nanswer = math.comb(7, 2) * 2",
        "import threading\nthread = threading.Thread(target=print)\nthread.start()\nthread.join()\nanswer = 42",
        "print('x' * 100_000)\nanswer = 42",
    ],
    ids=["plain", "library", "threads", "output"],
)
def test_a_right_program_passes(program):
    assert outcome(program).passed


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("answer = 41", "AssertionError"),
        ("answer =", "SyntaxError"),
        ("answer = 1 / 0", "ZeroDivisionError"),
        ("import sys; sys.exit(0)", "SystemExit"),
        ("import os; os._exit(0)", "ended before"),
        ("def f(): f()\nf()", "RecursionError"),
    ],
)
def test_a_wrong_one_fails_and_says_how(program, error):
    assert (found := outcome(program)).verdict == "failed"
    assert error in found.detail


def test_time_is_limited():
    started = time.monotonic()
    assert outcome("while True: pass", seconds=1).verdict == "timeout"
    assert outcome("import time; time.sleep(100)", seconds=1).verdict == "timeout"
    assert time.monotonic() - started < 20


def test_memory_is_limited():
    assert "MemoryError" in outcome("answer = ' ' * 2**29").detail
    assert outcome("answer = ' ' * 2**29; answer = 42", memory_mb=2048).passed


@pytest.mark.parametrize(
    "program",
    [
        "import socket; socket.socket()",
        "import socket; socket.create_connection(('127.0.0.1', 80))",
        "import socket; socket.socketpair()",
        "import urllib.request; urllib.request.urlopen('http://127.0.0.1/')",
    ],
)
def test_the_network_is_refused(program):
    assert "rror" in (found := outcome(f"{program}\nanswer = 42")).detail
    assert found.verdict == "failed"


@pytest.mark.parametrize(
    "program",
    [
        "open({path!r}, 'w')",
        "open({path!r}, 'a')",
        "open({path!r}, 'r+')",
        "import os; os.unlink({path!r})",
        "import os; os.rename({path!r}, {path!r} + '2')",
        "import os; os.chmod({path!r}, 0o777)",
        "import os; os.truncate({path!r}, 0)",
        "import os; os.symlink({path!r}, {path!r} + '2')",
        "import os; os.mkdir({path!r} + '2')",
    ],
)
def test_files_are_not_changed(program, tmp_path: Path):
    path = tmp_path / "kept"
    path.write_text("kept", "utf-8")
    found = outcome(program.format(path=str(path)) + "\nanswer = 42")
    assert "PermissionError" in found.detail
    assert [entry.name for entry in tmp_path.iterdir()] == ["kept"]
    assert path.read_text("utf-8") == "kept"


@pytest.mark.parametrize(
    "program",
    [
        "import os; os.fork()",
        "import os; os.execv('/bin/true', ['true'])",
        "import subprocess; subprocess.run(['true'])",
        pytest.param(f"import os; os.kill({os.getpid()}, 0)", id="the process of the tests"),
        "import os, signal; os.kill(os.getppid(), signal.SIGTERM)",
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)",
    ],
)
def test_processes_and_limits_are_out_of_reach(program):
    assert outcome(f"{program}\nanswer = 42").verdict == "failed"


def test_many_programs_keep_their_order():
    programs = [(f"answer = {number}", TESTS) for number in (42, 1, 42, 2)]
    assert [one.passed for one in run_all(programs, seconds=20, memory_mb=256)] == [True, False, True, False]
