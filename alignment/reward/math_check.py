"""Whether two answers are equal as mathematics, by ``math-verify`` in a process of its own.

Its own process for two reasons: ``math-verify`` bounds its time by SIGALRM, which only a main thread can receive, and
stages do not run in one; and an answer such as ``9**9**9**9`` must be able to cost no more than a process.
"""

from collections.abc import Sequence

from alignment.reward.side_process import SideProcess

LONGEST = 4000  # characters, from the end: that is where an answer's result stands
SECONDS = 20.0  # for one pair; math-verify itself gives up after 5 for each part


class MathChecker:
    """Compares (reference, answer) pairs; the process starts with the first of them and is kept."""

    def __init__(self, decimals: int) -> None:
        self.decimals = decimals
        self._process = SideProcess(_PROGRAM, "math-verify")

    def equal(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """1.0 where the answer's result is the reference's, else 0.0; also where it took too long to say."""
        return [self._ask(reference, answer) for reference, answer in pairs]

    def _ask(self, reference: str, answer: str) -> float:
        request = {"reference": reference, "answer": answer[-LONGEST:], "decimals": self.decimals}
        return float(self._process.ask(request, SECONDS) or 0)


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
