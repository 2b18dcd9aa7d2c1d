"""A Python process beside a stage that answers one question a line, and is ended where an answer takes too long.

For code that nothing else can interrupt: a backtracking regular expression holds the interpreter's lock until it ends,
and a user's function may do anything.
"""

import atexit
import json
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

from alignment.errors import StageError

START_SECONDS = 120.0  # for a process to import what it needs, on a busy machine


class SideProcess:
    """Runs ``source``, which writes one line when it is ready, then one line of JSON for each that it reads.

    ``what`` names it in errors; ``arguments`` are its ``sys.argv[1:]``. It starts with the first question.
    """

    def __init__(self, source: str, what: str, arguments: Sequence[str] = ()) -> None:
        self._command = [sys.executable, "-c", source, *arguments]
        self._what = what
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str] = queue.Queue()
        self._greeting = ""
        self._asking = threading.Lock()

    def ask(self, question: Any, seconds: float) -> Any:
        """The answer to a question, both JSON; None where it did not come in time, or the process died of it.

        Raises StageError where the process does not start.
        """
        with self._asking:
            process = self._started()
            assert process.stdin is not None
            try:
                process.stdin.write(json.dumps(question) + "\n")
                process.stdin.flush()
                line = self._lines.get(timeout=seconds)
            except (queue.Empty, BrokenPipeError):
                line = ""
            if not line:  # it hangs, or it died: the next question gets a new one
                self.close()
                return None
            return json.loads(line)

    def start(self) -> str:
        """Starts the process where none runs, and returns the line by which it said that it is ready."""
        with self._asking:
            self._started()
            return self._greeting

    def _started(self) -> "subprocess.Popen[str]":
        if self._process is None or self._process.poll() is not None:
            lines: queue.Queue[str] = queue.Queue()
            self._lines = lines
            self._process = process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            threading.Thread(target=_read, args=(process, lines), daemon=True).start()
            try:
                self._greeting = lines.get(timeout=START_SECONDS)
            except queue.Empty:
                self._greeting = ""
            if not self._greeting:
                self.close()
                raise StageError(f"{self._what} does not start")
            atexit.register(self.close)
        return self._process

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process = None
            atexit.unregister(self.close)


def _read(process: "subprocess.Popen[str]", lines: "queue.Queue[str]") -> None:
    assert process.stdout is not None
    try:
        for line in process.stdout:
            lines.put(line)
    except ValueError:  # closed under its hands
        pass
    lines.put("")
