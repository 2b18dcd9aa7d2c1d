"""The real command many times: a process that has imported everything forks one for each command line.

Each is a process of its own, with its own exit code and standard streams; what is spared is the seconds of imports.
Run as ``python -m tests.warm_cli``: it reads a JSON list of [arguments, folder] and writes one of [code, out, err].
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SECONDS = 300.0  # for one command


@dataclass(frozen=True)
class Ended:
    """How a command ended; a code of None: not in time."""

    code: int | None
    out: str
    err: str


def run_all(lines: Sequence[tuple[Sequence[str], Path]]) -> list[Ended]:
    """Runs command lines (without the program's name), each in a folder, one after the other."""
    given = json.dumps([[list(arguments), str(folder)] for arguments, folder in lines])
    ended = subprocess.run([sys.executable, "-m", "tests.warm_cli"], input=given, capture_output=True, text=True,
                           cwd=ROOT, check=True, timeout=60 + SECONDS * len(lines))  # fmt: skip
    return [Ended(*one) for one in json.loads(ended.stdout)]


def _one(arguments: list[str], folder: str) -> tuple[int | None, str, str]:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            os.chdir(folder)
            sys.argv = ["rlhf", *arguments]
            code = 1
            try:
                from flows.cli import main

                main()
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else 1
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        end = time.monotonic() + SECONDS
        while (found := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < end:
            time.sleep(0.02)
        if found == (0, 0):
            os.kill(child, 9)
            os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(found[1]) if found != (0, 0) else None
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "replace"))
        return code, texts[0], texts[1]


def serve() -> None:
    """Reads the command lines, imports what they import, runs them, and writes how they ended."""
    lines = json.load(sys.stdin)
    import preference_ui.import_export  # noqa: F401

    json.dump([_one(arguments, folder) for arguments, folder in lines], sys.stdout)


if __name__ == "__main__":
    serve()
