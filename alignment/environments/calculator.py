"""A calculator as a tool: see :class:`alignment.recipe.stages.environment.CalculatorEnvironment`."""

import json
import re
from collections.abc import Mapping
from typing import Any

from alignment.environments.arithmetic import ExpressionError, evaluate, number_of, written

_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?|(?<![\w.])-?\.\d+")


class Calculator:
    """An :class:`alignment.environments.protocol.Environment` that computes what it is asked to."""

    def __init__(self) -> None:
        self.reference: str | None = None

    def reset(self, prompt: Mapping[str, Any], _seed: int) -> None:
        """Begins with a prompt, whose ``reference`` the last answer is compared with."""
        self.reference = prompt["reference"]

    def step(self, answer: str) -> tuple[str, bool, float]:
        """The results of an answer's calls, a line each; without a call the episode is done."""
        calls = _CALL.findall(answer)
        if calls:
            return "\n".join(map(_result, calls)), False, 0.0
        return "", True, self._score(answer)

    def _score(self, answer: str) -> float:
        """1 where the last number of an answer is the reference, as a number."""
        wanted = None if self.reference is None else number_of(self.reference)
        found = _NUMBER.findall(answer)
        return float(wanted is not None and bool(found) and number_of(found[-1]) == wanted)


def _result(call: str) -> str:
    """The result of one call, or what is wrong with it: the policy is told, and may call again."""
    try:
        asked = json.loads(call)
    except ValueError:
        return "error: the call is no JSON"
    arguments = asked.get("arguments") if isinstance(asked, dict) else None
    expression = arguments.get("expression") if isinstance(arguments, dict) else None
    if not isinstance(asked, dict) or asked.get("name") != "calculator" or not isinstance(expression, str):
        return 'error: call {"name": "calculator", "arguments": {"expression": "12 * 7"}}'
    try:
        return written(evaluate(expression))
    except ExpressionError as problem:
        return f"error: {problem}"
