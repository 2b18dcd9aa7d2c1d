import math

import pytest

from alignment.evaluation.gate import decide
from alignment.recipe import Condition, Gate


def gate(*conditions: Condition) -> Gate:
    return Gate(evaluation="evaluation", conditions=conditions)


def test_passes_when_every_condition_does_and_says_by_how_much() -> None:
    verdict = decide(
        gate(Condition(metric="win_rate.base.rubric.low", above=0.5), Condition(metric="kl", below=20)),
        {"win_rate.base.rubric.low": 0.625, "kl": 12.5},
    )
    assert verdict.passed
    assert [(check.bound, check.threshold, check.by) for check in verdict.checks] == [
        ("above", 0.5, 0.125),
        ("below", 20, 7.5),
    ]


def test_one_failure_refuses() -> None:
    verdict = decide(gate(Condition(metric="kl", below=20), Condition(metric="finished.dpo", above=0.9)), {
        "kl": 25.0,
        "finished.dpo": 0.95,
    })  # fmt: skip
    assert not verdict.passed
    assert [check.passed for check in verdict.checks] == [False, True]
    assert verdict.checks[0].by == -5
    assert str(verdict.checks[0]) == "kl = 25, must be below 20: failed by 5"


def test_bounds_are_strict() -> None:
    assert not decide(gate(Condition(metric="x", above=0.5)), {"x": 0.5}).passed
    assert not decide(gate(Condition(metric="x", below=0.5)), {"x": 0.5}).passed


def test_a_condition_with_both_bounds_makes_two_checks() -> None:
    verdict = decide(gate(Condition(metric="length.dpo", above=5, below=50)), {"length.dpo": 60.0})
    assert [(check.bound, check.passed) for check in verdict.checks] == [("above", True), ("below", False)]


@pytest.mark.parametrize(
    ("metrics", "problem"), [({}, "no such metric"), ({"x": math.nan}, "nan"), ({"x": math.inf}, "inf")]
)
def test_what_cannot_be_checked_fails(metrics: dict[str, float], problem: str) -> None:
    verdict = decide(gate(Condition(metric="x", above=0)), metrics)
    assert not verdict.passed
    assert verdict.checks[0].value is None
    assert problem in str(verdict.checks[0])
    assert "NaN" not in verdict.model_dump_json()


def test_a_condition_without_a_bound_fails() -> None:
    verdict = decide(gate(Condition(metric="x")), {"x": 1.0})
    assert not verdict.passed
    assert "neither" in str(verdict.checks[0])
