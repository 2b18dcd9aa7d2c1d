"""Starts `rlhf` commands in processes of their own whose imports are done, and whose own code is read: it takes 10 s.

Run as a program with a workspace. Each line of its input is a request (arguments, log, environment): it forks, and the
child is the leader of a session of its own and calls the command line as `python -m flows.cli` does. Its process id,
and later its exit code, are lines of the output. Nothing but the imports is shared: a signal meets a real process.
"""

import atexit
import gc
import importlib
import json
import os
import select
import signal
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

from alignment.cache_key import code_digest
from alignment.recipe.error_messages import STAGE_KINDS
from alignment.workspace import Workspace
from flows.services.servers import quiet_environment

IMPORTED = (
    "torch", "transformers", "peft", "trl", "mlflow", "flows.commands.run", "flows.pipeline.launch",
    "alignment.checks.recipe", "alignment.registry", "alignment.models.export", "flows.pipeline.human_votes",
    *sorted({settings.spec.run for settings in STAGE_KINDS.values()}),
)  # fmt: skip

CODE = (
    "alignment.checks.recipe",
    "alignment.registry",
    *(one for one in IMPORTED if one.startswith("alignment.stages")),
)


def become(request: dict[str, Any]) -> None:
    """Turns this fork into the command that was asked for, as a shell would start it."""
    os.setsid()
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, source in ((0, nothing), (1, log), (2, log)):
        os.dup2(source, descriptor)
    os.environ.update(request["environment"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdin, sys.argv = open(0, encoding="utf-8"), ["rlhf", *request["arguments"]]  # noqa: SIM115


def say(**values: int) -> None:
    print(json.dumps(values), flush=True)


def reap() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        say(pid=pid, code=os.waitstatus_to_exitcode(status))


def next_command() -> None:
    """Returns in a child that is to be a command; ends the process when the input does."""
    rest = b""
    while True:
        reap()
        ready, _writing, _errors = select.select([0], [], [], 0.01)
        if not ready:
            continue
        read = os.read(0, 65536)
        if not read:
            os._exit(0)
        *lines, rest = (rest + read).split(b"\n")
        for line in lines:
            pid = os.fork()
            if pid == 0:
                become(json.loads(line))
                return
            say(pid=pid)


def main() -> NoReturn:
    quiet_environment(Workspace(Path(sys.argv[1])))
    for module in IMPORTED:
        importlib.import_module(module)
    for module in CODE:
        code_digest(module)
    assert threading.active_count() == 1, threading.enumerate()  # a fork has no other thread
    print(json.dumps({"ready": True}), flush=True)
    gc.collect()
    gc.freeze()  # what the children share with this process
    next_command()
    from flows.cli import main as command_line

    code = 1
    try:
        command_line()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0
    finally:  # an interpreter's end, but for taking every module apart
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
