"""The gate: whether an evaluation's metrics allow a version to become the champion."""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from alignment.evaluation.looks import LEVEL, level_of
from alignment.evaluation.metric_names import directions, evaluation_judges
from alignment.evaluation.win_rate import EVEN, Rate
from alignment.evaluation.win_test import decided, lower_bound, p_value, widened, wins_needed
from alignment.recipe.base import CHAMPION
from alignment.recipe.gate import Condition, Gate
from alignment.recipe.metrics import Better
from alignment.recipe.stages.evaluate import EvaluateStage
from alignment.records import Record

Bound = Literal["above", "below"]
CLAIMS: Mapping[Bound, str] = {"above": ".low", "below": ".high"}  # the end of an interval that a bound is about


class GateCheck(Record):
    """One bound of one condition.

    ``by`` is the distance to the threshold, positive on the passing side; ``value`` and ``by`` are None where the
    metric is missing or not a number, and ``problem`` then says so. ``note`` says what else there is to know: that the
    bound is a non-inferiority margin, or that there is no champion yet, which passes. ``level`` is the one-sided level
    that ``value``, an interval's end, is held to; None for what is no interval's end. ``test`` says what the exact test
    on won and lost prompts asked and found; where it fails, the check does, whatever ``by`` is.
    """

    name: str
    value: float | None
    threshold: float | None
    bound: Bound
    passed: bool
    by: float | None
    problem: str | None = None
    note: str = ""
    level: float | None = None
    test: str = ""

    def __str__(self) -> str:
        if self.problem is not None:
            return f"{self.name}: {self.problem}"
        if self.value is None:
            return f"{self.name}: {self.note}"
        at = "" if self.level is None or self.level == LEVEL else f" at {level_words(self.level)}"
        notes = "; ".join(one for one in (self.note, self.test) if one)
        verdict = f"{self.verdict} ({notes})" if notes else self.verdict
        return f"{self.name}{at} = {self.value:.4g}, must be {self.bound} {self.threshold:g}: {verdict}"

    @property
    def verdict(self) -> str:
        """Whether it passed, and by how much; the test's failure where the bound itself holds."""
        by = self.by or 0.0
        if not self.passed and by > 0:
            return "failed by the exact test"
        return f"{'passed' if self.passed else 'failed'} by {abs(by):.4g}"


class GateLook(Record):
    """Which look at its held-out prompts a verdict is, and the level that it is held to.

    ``spends``: the level is that of this look; else that of a first one, whichever look it is.
    """

    number: int
    prompts: int
    level: float
    spends: bool

    def __str__(self) -> str:
        held = f"held to {level_words(self.level)} one-sided"
        if not self.spends and self.number > 1:
            held += f", as a first look would be; one that spends the level would be held to {level_words(self.due)}"
        return f"look {self.number} at these {self.prompts} held-out prompts, {held}"

    @property
    def due(self) -> float:
        """The level of this look where looks are counted."""
        return level_of(self.number)


class GateVerdict(Record):
    """All checks. ``passed``: every one is, and nobody else need agree. ``waits``: every one is, and a person must.

    ``look`` is None where nobody counted.
    """

    passed: bool
    checks: tuple[GateCheck, ...]
    waits: bool = False
    look: GateLook | None = None

    @property
    def holds(self) -> bool:
        """Whether every condition holds, whoever else must agree."""
        return self.passed or self.waits

    @property
    def lines(self) -> list[str]:
        """The verdict for a terminal: the look, then each check."""
        checks = [f"{'holds ' if check.passed else 'failed'} {check}" for check in self.checks]
        return checks if self.look is None else [str(self.look), *checks]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What an evaluation measured: ``metrics`` by name, and behind the intervals among them the counts.

    ``rates`` are the win rates by their name without a part (``win_rate.base.rubric``), ``sizes`` the number of prompts
    behind any other interval likewise.
    """

    metrics: Mapping[str, float]
    rates: Mapping[str, Rate] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one bound asks for, in the evaluation's own names."""

    metric: str
    bound: Bound
    threshold: float
    note: str = ""

    @property
    def claims(self) -> bool:
        """Whether it is about the end of an interval, so that chance passes it as often as its level says."""
        return self.metric.endswith(CLAIMS[self.bound])


def decide(
    gate: Gate,
    found: Evidence | Mapping[str, float],
    evaluation: EvaluateStage | None = None,
    *,
    champion: bool = True,
    look: GateLook | None = None,
) -> GateVerdict:
    """Holds what was ``found`` against every condition. Bounds are strict: a value equal to its threshold fails.

    ``evaluation`` is the stage's settings, which metrics against a version need; ``champion`` says whether there
    was one to compare with. ``look`` says how often the held-out prompts were looked at, and so how wide intervals are;
    None: they are as the evaluation has them, 95 %. All conditions must hold, so that each may be held to the whole
    level. What cannot be checked fails: a missing metric, NaN, or a condition without a bound.
    """
    evidence = found if isinstance(found, Evidence) else Evidence(found)
    absent = () if champion else (CHAMPION,)
    level = LEVEL if look is None else look.level
    asked = _Asked(evidence, level, gate.least_decided, absent)
    checks = tuple(check for one in gate.conditions for check in _checks(one, asked, evaluation))
    passed, human = all(check.passed for check in checks), gate.approval == "human"
    return GateVerdict(passed=passed and not human, checks=checks, waits=passed and human, look=look)


def resolve(condition: Condition, evaluation: EvaluateStage | None) -> Wanted | str:
    """What a condition against a version asks for; or in words, why nothing measures it.

    Without the evaluation's settings a win rate is taken to be measured, and nothing is known of any other metric:
    ValueError.
    """
    against, margin, name = condition.against, condition.margin, condition.metric
    note = f"no worse than {against} by {margin:g} or more" if margin else f"better than {against}"
    if name.startswith("win_rate."):
        judge = name.removeprefix("win_rate.")
        if evaluation is not None and judge not in evaluation_judges(evaluation):
            return f"nobody is called {judge} who judges it"
        return Wanted(f"win_rate.{against}.{judge}.low", "above", EVEN - margin, note)
    if evaluation is None:
        raise ValueError("a condition against a version needs the evaluation's settings")
    known = directions(evaluation)
    if name not in known:
        return f"no metric or reward is called {name}"
    way: Better | None = condition.better or known[name]
    if way is None:
        return f"nobody can say which {name} is better: set better to higher or lower"
    what = "reward_lead" if name in evaluation.reward_names() else "metric_lead"
    if way == "higher":
        return Wanted(f"{what}.{against}.{name}.low", "above", -margin, note)
    return Wanted(f"{what}.{against}.{name}.high", "below", margin, note)


def wanted_of(condition: Condition, evaluation: EvaluateStage | None) -> list[Wanted | str]:
    """What a condition asks for, one for each bound; in words what is wrong with it."""
    if condition.against is not None:
        return [resolve(condition, evaluation)]
    bounds: dict[Bound, float | None] = {"above": condition.above, "below": condition.below}
    found: list[Wanted | str] = [
        Wanted(condition.metric, bound, value) for bound, value in bounds.items() if value is not None
    ]
    return found or ["the condition has neither 'above' nor 'below'"]


def level_words(level: float) -> str:
    """A level in per cent, to two digits."""
    return f"{100 * level:.2g} %"


@dataclass(frozen=True, slots=True)
class _Asked:
    """What all checks share."""

    evidence: Evidence
    level: float
    least_decided: int
    absent: Collection[str]


def _checks(condition: Condition, asked: _Asked, evaluation: EvaluateStage | None) -> Iterator[GateCheck]:
    for wanted in wanted_of(condition, evaluation):
        if isinstance(wanted, str):
            yield _failed(condition.metric, None, "above", wanted)
        else:
            yield _check(wanted, asked)


def _check(wanted: Wanted, asked: _Asked) -> GateCheck:
    name, bound, threshold = wanted.metric, wanted.bound, wanted.threshold
    value = asked.evidence.metrics.get(name)
    if value is None and set(name.split(".")) & set(asked.absent):
        return GateCheck(name=name, value=None, threshold=threshold, bound=bound, passed=True, by=None,
                         note="there is no champion yet to be compared with")  # fmt: skip
    if value is None:
        return _failed(name, threshold, bound, "the evaluation has no such metric")
    if not math.isfinite(value):
        return _failed(name, threshold, bound, f"the metric is {value}, not a finite number")
    level, test, holds = None, "", True
    if wanted.claims:
        level, stem = asked.level, name.rpartition(".")[0]
        moved = _at_level(name, stem, value, asked)
        if moved is None:
            return _failed(name, threshold, bound, "its interval cannot be widened: the evaluation has no such counts")
        value = moved
        rate = asked.evidence.rates.get(stem)
        if rate is not None and bound == "above" and 0 < threshold < 1:
            holds, test = _exactly(rate, threshold, asked)
    by = value - threshold if bound == "above" else threshold - value
    return GateCheck(name=name, value=value, threshold=threshold, bound=bound, passed=by > 0 and holds, by=by,
                     note=wanted.note, level=level, test=test)  # fmt: skip


def _at_level(name: str, stem: str, value: float, asked: _Asked) -> float | None:
    """The end of an interval at the level asked; None where nothing says how it grows."""
    if asked.level == LEVEL:
        return value
    if (rate := asked.evidence.rates.get(stem)) is not None and name.endswith(".low"):
        return lower_bound(rate, asked.level)
    middle = asked.evidence.metrics.get(f"{stem}.value", asked.evidence.metrics.get(stem))
    size = asked.evidence.sizes.get(stem)
    if middle is None or size is None:
        return None
    return widened(middle, value, size, asked.level)


def _exactly(rate: Rate, threshold: float, asked: _Asked) -> tuple[bool, str]:
    """Whether the exact test agrees that a win rate lies above ``threshold``, and what it asked, in words."""
    won, lost = decided(rate)
    chance = p_value(rate, threshold)
    if threshold != EVEN:
        return chance <= asked.level, f"chance at {threshold:g}: {level_words(chance)}"
    of = f"{won} of {won + lost} decided prompts won"
    if won + lost < asked.least_decided:
        return False, f"{of}, and at least {asked.least_decided} must be decided"
    needed = wins_needed(won + lost, asked.level)
    if needed > won + lost:
        return False, f"{of}, and so few cannot show it at {level_words(asked.level)}"
    return chance <= asked.level, f"{of}, {needed} asked"


def _failed(name: str, threshold: float | None, bound: Bound, problem: str) -> GateCheck:
    return GateCheck(name=name, value=None, threshold=threshold, bound=bound, passed=False, by=None, problem=problem)
