"""Whether two answers are equal as mathematics, by ``math-verify`` in a process of its own.

Its own process for two reasons: ``math-verify`` bounds its time by SIGALRM, which only a main thread can receive, and
stages do not run in one; and an answer such as ``9**9**9**9`` must be able to cost no more than a process.
"""

import atexit
import json
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence

from alignment.errors import StageError

LONGEST = 4000  # characters, from the end: that is where an answer's result stands
SECONDS = 20.0  # for one pair; math-verify itself gives up after 5 for each part
START_SECONDS = 120.0  # for the process to import it, on a busy machine


class MathChecker:
    """Compares (reference, answer) pairs; the process starts with the first of them and is kept."""

    def __init__(self, decimals: int) -> None:
        self.decimals = decimals
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str] = queue.Queue()

    def equal(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """1.0 where the answer's result is the reference's, else 0.0; also where it took too long to say."""
        return [self._ask(reference, answer) for reference, answer in pairs]

    def _ask(self, reference: str, answer: str) -> float:
        process = self._started()
        assert process.stdin is not None
        request = {"reference": reference, "answer": answer[-LONGEST:], "decimals": self.decimals}
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = self._lines.get(timeout=SECONDS)
        except (queue.Empty, BrokenPipeError):
            line = ""
        if not line:  # it hangs, or it died: the next pair gets a new one
            self.close()
            return 0.0
        return float(json.loads(line))

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            lines: queue.Queue[str] = queue.Queue()
            self._lines = lines
            self._process = process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            threading.Thread(target=_read, args=(process, lines), daemon=True).start()
            try:
                started = lines.get(timeout=START_SECONDS)
            except queue.Empty:
                started = ""
            if not started:
                self.close()
                raise StageError("math-verify does not start; is it installed whole?")
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


def _read(process: subprocess.Popen[str], lines: queue.Queue[str]) -> None:
    assert process.stdout is not None
    try:
        for line in process.stdout:
            lines.put(line)
    except ValueError:  # closed under its hands
        pass
    lines.put("")


# Where the reference is a value, the answer must be one: for "What is 7 * 8?" the answer "7 * 8" is equal to 56 as
# mathematics, and says nothing. A policy that is rewarded for it learns to repeat the question. (This one did.)
_PROGRAM = r"""
import json, logging, math, re, sys
logging.disable(logging.CRITICAL)
import sympy
from math_verify import parse, verify
answers, sys.stdout = sys.stdout, sys.stderr
number = re.compile(r"\s*[-+]?\s*(\d[\d,]*\.?\d*|\.\d+)\s*")
fraction = re.compile(r"\s*[-+]?\s*(\d+)\s*/\s*(\d+)\s*")
def is_value(parsed):
    if isinstance(parsed[0], sympy.Number) or number.fullmatch(str(parsed[-1])):
        return True
    match = fraction.fullmatch(str(parsed[-1]))
    return bool(match) and math.gcd(*map(int, match.groups())) == 1
print("ready", file=answers, flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    reference = parse(asked["reference"])
    answer = parse(asked["answer"])
    equal = bool(reference and answer and verify(reference, answer, float_rounding=asked["decimals"]))
    equal = equal and (is_value(answer) or not is_value(reference))
    print(int(equal), file=answers, flush=True)
"""
