"""The gate: whether an evaluation's metrics allow a version to become the champion."""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from alignment.evaluation.metric_names import directions, evaluation_judges
from alignment.recipe.base import CHAMPION
from alignment.recipe.gate import Condition, Gate
from alignment.recipe.metrics import Better
from alignment.recipe.rewards import reward_name
from alignment.recipe.stages.evaluate import EvaluateStage
from alignment.records import Record

Bound = Literal["above", "below"]
EVEN = 0.5  # the win rate of equals


class GateCheck(Record):
    """One bound of one condition.

    ``by`` is the distance to the threshold, positive on the passing side; ``value`` and ``by`` are None where the
    metric is missing or not a number, and ``problem`` then says so. ``note`` says what else there is to know: that the
    bound is a non-inferiority margin, or that there is no champion yet, which passes.
    """

    name: str
    value: float | None
    threshold: float | None
    bound: Bound
    passed: bool
    by: float | None
    problem: str | None = None
    note: str = ""

    def __str__(self) -> str:
        if self.problem is not None:
            return f"{self.name}: {self.problem}"
        if self.value is None:
            return f"{self.name}: {self.note}"
        verdict = f"{'passed' if self.passed else 'failed'} by {abs(self.by or 0):.4g}"
        note = f" ({self.note})" if self.note else ""
        return f"{self.name} = {self.value:.4g}, must be {self.bound} {self.threshold:g}: {verdict}{note}"


class GateVerdict(Record):
    """All checks. ``passed``: every one is, and nobody else need agree. ``waits``: every one is, and a person must."""

    passed: bool
    checks: tuple[GateCheck, ...]
    waits: bool = False

    @property
    def holds(self) -> bool:
        """Whether every condition holds, whoever else must agree."""
        return self.passed or self.waits


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one bound asks for, in the evaluation's own names."""

    metric: str
    bound: Bound
    threshold: float
    note: str = ""


def decide(
    gate: Gate, metrics: Mapping[str, float], evaluation: EvaluateStage | None = None, *, champion: bool = True
) -> GateVerdict:
    """Holds ``metrics`` against every condition. Bounds are strict: a value equal to its threshold fails.

    ``evaluation`` is the stage's settings, which conditions against a version need; ``champion`` says whether there
    was one to compare with. What cannot be checked fails: a missing metric, NaN, or a condition without a bound.
    """
    absent = () if champion else (CHAMPION,)
    checks = tuple(check for one in gate.conditions for check in _checks(one, metrics, evaluation, absent))
    passed, human = all(check.passed for check in checks), gate.approval == "human"
    return GateVerdict(passed=passed and not human, checks=checks, waits=passed and human)


def resolve(condition: Condition, evaluation: EvaluateStage) -> Wanted | str:
    """What a condition against a version asks for; or in words, why nothing measures it."""
    against, margin, name = condition.against, condition.margin, condition.metric
    note = f"no worse than {against} by {margin:g} or more" if margin else f"better than {against}"
    if name.startswith("win_rate."):
        judge = name.removeprefix("win_rate.")
        if judge not in evaluation_judges(evaluation):
            return f"nobody is called {judge} who judges it"
        return Wanted(f"win_rate.{against}.{judge}.low", "above", EVEN - margin, note)
    known = directions(evaluation)
    if name not in known:
        return f"no metric or reward is called {name}"
    way: Better | None = condition.better or known[name]
    if way is None:
        return f"nobody can say which {name} is better: set better to higher or lower"
    what = "reward_lead" if name in map(reward_name, evaluation.rewards) else "metric_lead"
    if way == "higher":
        return Wanted(f"{what}.{against}.{name}.low", "above", -margin, note)
    return Wanted(f"{what}.{against}.{name}.high", "below", margin, note)


def _checks(
    condition: Condition, metrics: Mapping[str, float], evaluation: EvaluateStage | None, absent: Collection[str]
) -> Iterator[GateCheck]:
    if condition.against is not None:
        if evaluation is None:
            raise ValueError("a condition against a version needs the evaluation's settings")
        wanted = resolve(condition, evaluation)
        if isinstance(wanted, str):
            yield _failed(condition.metric, None, "above", wanted)
        else:
            yield _check(wanted, metrics, absent)
        return
    if condition.above is None and condition.below is None:
        problem = "the condition has neither 'above' nor 'below'"
        yield _failed(condition.metric, None, "above", problem)
    if condition.above is not None:
        yield _check(Wanted(condition.metric, "above", condition.above), metrics, absent)
    if condition.below is not None:
        yield _check(Wanted(condition.metric, "below", condition.below), metrics, absent)


def _check(wanted: Wanted, metrics: Mapping[str, float], absent: Collection[str]) -> GateCheck:
    name, bound, threshold = wanted.metric, wanted.bound, wanted.threshold
    value = metrics.get(name)
    if value is None and set(name.split(".")) & set(absent):
        return GateCheck(name=name, value=None, threshold=threshold, bound=bound, passed=True, by=None,
                         note="there is no champion yet to be compared with")  # fmt: skip
    if value is None:
        return _failed(name, threshold, bound, "the evaluation has no such metric")
    if not math.isfinite(value):
        return _failed(name, threshold, bound, f"the metric is {value}, not a finite number")
    by = value - threshold if bound == "above" else threshold - value
    return GateCheck(name=name, value=value, threshold=threshold, bound=bound, passed=by > 0, by=by, note=wanted.note)


def _failed(name: str, threshold: float | None, bound: Bound, problem: str) -> GateCheck:
    return GateCheck(name=name, value=None, threshold=threshold, bound=bound, passed=False, by=None, problem=problem)
