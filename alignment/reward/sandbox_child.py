"""The processes inside :mod:`alignment.reward.sandbox`: each confines itself, then runs the answer or the tests.

It is started by its path, and what it needs of ours it loads by path. Confinement is a seccomp filter (a list of
system calls that fail) because that needs no privileges, works in containers, and cannot be taken off again by what
runs later.
"""

import ast
import contextlib
import ctypes
import importlib
import importlib.util
import json
import os
import platform
import resource
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

ALLOW, EPERM, ENOSYS = 0x7FFF0000, 0x00050001, 0x00050026
LAZY = (  # what the library imports only when it needs it, and could not then
    "_strptime", "collections.abc", "copy", "encodings.ascii", "encodings.latin_1", "encodings.utf_16", "functools",
    "heapq", "re",
)  # fmt: skip
UNWANTED = {"antigravity", "idlelib", "test", "this", "tkinter", "turtle", "turtledemo"}  # they act when imported
THREAD = 0x10000  # clone's flag for a thread
# By the audit architecture's number: refused calls. Names as in the kernel's tables.
X86_64: dict[str, Any] = {
    "arch": 0xC000003E,
    "refused": [
        2, 257,  # open, openat: reading too, so that nobody's tests, memory or keys can be read
        41, 42, 43, 44, 46, 49, 50, 53, 288, 307,  # socket, connect, accept, sendto, sendmsg, bind, listen, …
        57, 58, 59, 322,  # fork, vfork, execve, execveat
        62, 200, 234, 129, 297, 424, 434, 438,  # kill, tkill, tgkill, sigqueue, pidfd_*
        101, 310, 311, 425, 426, 427, 440,  # ptrace, process_vm_*, io_uring_*, process_madvise
        76, 77, 82, 83, 84, 85, 86, 87, 88, 90, 91, 92, 93, 94, 132, 133, 235, 452,  # truncate, rename, mkdir, unlink …
        258, 259, 260, 261, 263, 264, 265, 266, 268, 280, 285, 316,  # their *at forms, fallocate, renameat2
        188, 189, 190, 197, 198, 199,  # extended attributes
        155, 161, 165, 166, 272, 304, 308, 428, 429, 430, 442,  # roots, mounts, namespaces, open_by_handle_at
        159, 163, 164, 167, 168, 169, 170, 171, 172, 173, 175, 176, 179, 227, 246, 313, 320,  # the machine itself
        248, 249, 250, 298, 321, 323, 29, 64, 68,  # keys, perf, bpf, userfaultfd, System V memory and queues
        141, 160, 203, 302,  # priorities and limits
    ],
    "absent": [435, 437],  # clone3 and openat2, whose flags lie behind a pointer; libraries fall back
    "clone": 56,
}  # fmt: skip
ARM64: dict[str, Any] = {
    "arch": 0xC00000B7,
    "refused": [
        56,
        198, 199, 200, 201, 202, 203, 206, 211, 242, 269, 221, 281,
        129, 130, 131, 138, 240, 424, 434, 438, 117, 270, 271, 425, 426, 427, 440,
        33, 34, 35, 36, 37, 38, 45, 46, 47, 52, 53, 54, 55, 88, 276, 452, 5, 6, 7, 14, 15, 16,
        39, 40, 41, 51, 97, 265, 268, 428, 429, 430, 442,
        171, 89, 170, 224, 225, 142, 161, 162, 105, 106, 60, 112, 104, 273, 294,
        217, 218, 219, 241, 280, 282, 186, 190, 194, 140, 164, 122, 261,
    ],
    "absent": [435, 437],
    "clone": 220,
}  # fmt: skip
TABLES = {"x86_64": X86_64, "aarch64": ARM64}


def instruction(code: int, value: int, true: int = 0, false: int = 0) -> bytes:
    return struct.pack("HBBI", code, true, false, value)


def rules(table: dict[str, Any]) -> Iterator[bytes]:
    """The filter as classic BPF over seccomp_data: the call's number at 0, the architecture at 4, arguments from 16."""
    load, equal, any_bit, at_least, give = 0x20, 0x15, 0x45, 0x35, 0x06
    yield instruction(load, 4)
    yield instruction(equal, table["arch"], 1, 0)
    yield instruction(give, EPERM)
    yield instruction(load, 0)
    yield instruction(at_least, 0x40000000, 0, 1)  # x32: the same calls under other numbers
    yield instruction(give, EPERM)
    for answer, calls in ((EPERM, table["refused"]), (ENOSYS, table["absent"])):
        for call in calls:
            yield instruction(equal, call, 0, 1)
            yield instruction(give, answer)
    yield instruction(equal, table["clone"], 0, 4)
    yield instruction(load, 16)
    yield instruction(any_bit, THREAD, 1, 0)
    yield instruction(give, EPERM)
    yield instruction(give, ALLOW)
    yield instruction(give, ALLOW)


def confine(seconds: float, memory_mb: int) -> None:
    """Sets the limits and the filter. Raises OSError or KeyError where this machine has none."""
    memory, processor = memory_mb * 2**20, int(seconds) + 1
    for limit, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, processor),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        resource.setrlimit(limit, (value, value))
    program = b"".join(rules(TABLES[platform.machine()]))

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]

    code = ctypes.create_string_buffer(program)
    pointer = Program(len(program) // 8, ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(pointer), 0, 0):  # no new privileges; seccomp
        raise OSError(ctypes.get_errno(), "no seccomp filter")


def load(name: str) -> ModuleType:
    """A module that lies beside this one."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def import_library(source: str) -> None:
    """Imports what a program names of the standard library, while files can still be read."""
    names = list(LAZY)
    with contextlib.suppress(SyntaxError, ValueError, RecursionError, MemoryError):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Name):  # tests use `math` that the answer imported
                names.append(node.id)
    for name in dict.fromkeys(names):
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names and top not in UNWANTED:
            with contextlib.suppress(Exception):  # a name may be no module's: the program will see
                importlib.import_module(name)


def main() -> None:
    role, reading, writing, telling = sys.argv[1], *map(int, sys.argv[2:5])
    request = json.loads(sys.stdin.buffer.read())
    sys.argv[1:] = []
    sys.stdin.close()
    sys.set_int_max_str_digits(0)
    try:
        wire_module, side = load("sandbox_wire"), load(f"sandbox_{role}")
        import_library(request["source"])
        confine(request["seconds"], request["memory_mb"])
    except Exception as error:
        os.write(telling, f"unconfined:{type(error).__name__}: {error}".encode())
        return
    wire = wire_module.Wire(reading, writing)
    if role == "answer":
        os.close(telling)  # nothing that the program writes is a verdict
        with contextlib.suppress(wire_module.Ended):
            side.run_answer(request["source"], wire, wire_module)
        os._exit(0)
    verdict = request["token"]
    try:
        side.run_tests(request["source"], side.Tests(wire, wire_module))
    except wire_module.Ended:
        verdict = "the program ended before its tests did"
    except BaseException as error:  # SystemExit too: tests that leave have not been passed
        verdict = f"{type(error).__name__}: {error}"[:2000]
    os.write(telling, verdict.encode("utf-8", "replace"))
    os._exit(0)


if __name__ == "__main__":
    main()
