"""The gate: whether an evaluation's metrics allow a version to become the champion."""

import math
from collections.abc import Iterator, Mapping
from typing import Literal

from alignment.recipe import Condition, Gate
from alignment.records import Record


class GateCheck(Record):
    """One bound of one condition.

    ``by`` is the distance to the threshold, positive on the passing side; ``value`` and ``by`` are None where the
    metric is missing or not a number, and ``problem`` then says so.
    """

    name: str
    value: float | None
    threshold: float | None
    bound: Literal["above", "below"]
    passed: bool
    by: float | None
    problem: str | None = None

    def __str__(self) -> str:
        if self.problem is not None:
            return f"{self.name}: {self.problem}"
        verdict = f"{'passed' if self.passed else 'failed'} by {abs(self.by or 0):.4g}"
        return f"{self.name} = {self.value:.4g}, must be {self.bound} {self.threshold:g}: {verdict}"


class GateVerdict(Record):
    """All checks; the gate is passed when every one is."""

    passed: bool
    checks: tuple[GateCheck, ...]


def decide(gate: Gate, metrics: Mapping[str, float]) -> GateVerdict:
    """Holds ``metrics`` against every condition. Bounds are strict: a value equal to its threshold fails.

    What cannot be checked fails: a missing metric, NaN, or a condition without a bound.
    """
    checks = tuple(check for condition in gate.conditions for check in _checks(condition, metrics))
    return GateVerdict(passed=all(check.passed for check in checks), checks=checks)


def _checks(condition: Condition, metrics: Mapping[str, float]) -> Iterator[GateCheck]:
    if condition.above is None and condition.below is None:
        problem = "the condition has neither 'above' nor 'below'"
        yield _failed(condition.metric, None, "above", problem)
    if condition.above is not None:
        yield _check(condition.metric, metrics, condition.above, "above")
    if condition.below is not None:
        yield _check(condition.metric, metrics, condition.below, "below")


def _check(name: str, metrics: Mapping[str, float], threshold: float, bound: Literal["above", "below"]) -> GateCheck:
    value = metrics.get(name)
    if value is None:
        return _failed(name, threshold, bound, "the evaluation has no such metric")
    if not math.isfinite(value):
        return _failed(name, threshold, bound, f"the metric is {value}, not a finite number")
    by = value - threshold if bound == "above" else threshold - value
    return GateCheck(name=name, value=value, threshold=threshold, bound=bound, passed=by > 0, by=by)


def _failed(name: str, threshold: float | None, bound: Literal["above", "below"], problem: str) -> GateCheck:
    return GateCheck(name=name, value=None, threshold=threshold, bound=bound, passed=False, by=None, problem=problem)
