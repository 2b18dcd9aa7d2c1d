"""Regular expressions and JSON Schemas of the user, tried on answers in a process of their own and with a time limit.

Both can take exponential time on an answer that a model writes by chance. An answer on which a rule does not end in
time gets 0, and the log says so.
"""

import logging
from collections.abc import Sequence
from typing import Any

from alignment.reward.side_process import SideProcess

_log = logging.getLogger(__name__)


class BoundedRule:
    """Whether texts keep a rule; ``seconds`` is the time for one of them."""

    def __init__(self, what: str, seconds: float) -> None:
        self._process = SideProcess(_PROGRAM, "the process of the rewards regex and json_schema")
        self._what, self._seconds = what, seconds
        self.unended = 0  # texts on which the rule did not end

    def holds(self, questions: Sequence[dict[str, Any]]) -> list[float]:
        """1.0 for each question whose text keeps its rule, else 0.0.

        A question is ``{"pattern", "whole", "ignore_case", "text"}`` or ``{"schema", "text"}``.
        """
        return [self._one(question) for question in questions]

    def _one(self, question: dict[str, Any]) -> float:
        answer = self._process.ask(question, self._seconds)
        if answer is None:
            self.unended += 1
            words = "the reward %s did not end within %g s on an answer of %d characters, which gets 0 (%d so far)"
            _log.warning(words, self._what, self._seconds, len(question["text"]), self.unended)
            return 0.0
        return float(answer)


_PROGRAM = r"""
import json, re, sys
from functools import lru_cache
from jsonschema import Draft202012Validator
answers, sys.stdout = sys.stdout, sys.stderr

@lru_cache(maxsize=64)
def validator(schema):
    return Draft202012Validator(json.loads(schema))

def holds(asked):
    if "schema" in asked:
        try:
            value = json.loads(asked["text"])
        except (ValueError, RecursionError):
            return False
        return validator(asked["schema"]).is_valid(value)
    flags = re.DOTALL | (re.IGNORECASE if asked["ignore_case"] else 0)
    match = re.fullmatch if asked["whole"] else re.search
    return match(asked["pattern"], asked["text"], flags) is not None

print("ready", file=answers, flush=True)
for line in sys.stdin:
    print(int(holds(json.loads(line))), file=answers, flush=True)
"""
