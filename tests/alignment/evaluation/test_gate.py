import math

import pytest

from alignment.evaluation.gate import decide
from alignment.recipe.gate import Condition, Gate
from alignment.recipe.stages.evaluate import EvaluateStage


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


STAGE = EvaluateStage.model_validate(
    {
        "kind": "evaluate", "model": "dpo", "against": ["base", "champion"], "raters": {"rubric": "rubric.yaml"},
        "metrics": [{"kind": "rouge"}, {"kind": "perplexity"}, {"kind": "length"}], "rewards": [{"kind": "exact"}],
    }
)  # fmt: skip


def against(metric: str, opponent: str = "base", **more: object) -> Gate:
    return gate(Condition.model_validate({"metric": metric, "against": opponent} | more))


@pytest.mark.parametrize(
    ("condition", "metrics", "passed", "by"),
    [  # the end of the lead's interval that must lie on the right side, by hand
        (against("rouge_l"), {"metric_lead.base.rouge_l.low": 0.01}, True, 0.01),
        (against("rouge_l"), {"metric_lead.base.rouge_l.low": -0.01}, False, -0.01),
        (against("rouge_l", margin=0.02), {"metric_lead.base.rouge_l.low": -0.01}, True, 0.01),
        (against("perplexity"), {"metric_lead.base.perplexity.high": -0.3}, True, 0.3),
        (against("perplexity", margin=0.5), {"metric_lead.base.perplexity.high": 0.6}, False, -0.1),
        (against("exact", "champion"), {"reward_lead.champion.exact.low": 0.2}, True, 0.2),
        (against("win_rate.rubric", "champion"), {"win_rate.champion.rubric.low": 0.48}, False, -0.02),
        (against("win_rate.rubric", "champion", margin=0.05), {"win_rate.champion.rubric.low": 0.48}, True, 0.03),
        (against("length", better="lower"), {"metric_lead.base.length.high": -2.0}, True, 2.0),
    ],
)
def test_against_a_version_the_whole_interval_counts(
    condition: Gate, metrics: dict[str, float], passed: bool, by: float
) -> None:
    verdict = decide(condition, metrics, STAGE)
    assert verdict.passed == passed
    assert verdict.checks[0].by == pytest.approx(by)


def test_a_condition_says_what_it_asks_of_whom() -> None:
    verdict = decide(against("rouge_l", margin=0.02), {"metric_lead.base.rouge_l.low": -0.01}, STAGE)
    assert str(verdict.checks[0]) == (
        "metric_lead.base.rouge_l.low = -0.01, must be above -0.02: passed by 0.01 (no worse than base by 0.02 or more)"
    )


def test_against_a_champion_that_is_not_there_everything_holds() -> None:
    conditions = (
        Condition(metric="rouge_l", against="champion"),
        Condition(metric="win_rate.champion.rubric.low", above=0.5),
        Condition(metric="kl", below=20),
    )
    verdict = decide(gate(*conditions), {"kl": 3.0}, STAGE, champion=False)
    assert verdict.passed
    assert "there is no champion yet" in str(verdict.checks[0])
    assert not decide(gate(*conditions), {"kl": 3.0}, STAGE).passed  # there is one, and nothing was measured of it


@pytest.mark.parametrize(
    ("condition", "problem"),
    [
        (against("length"), "set better to higher or lower"),
        (against("blue"), "no metric or reward is called blue"),
        (against("win_rate.reward"), "nobody is called reward"),
    ],
)
def test_what_nothing_measures_fails(condition: Gate, problem: str) -> None:
    verdict = decide(condition, {}, STAGE)
    assert not verdict.passed
    assert problem in str(verdict.checks[0])


def test_with_a_persons_approval_a_version_waits_where_it_would_have_passed() -> None:
    human = gate(Condition(metric="kl", below=20)).model_copy(update={"approval": "human"})
    waits, refused = decide(human, {"kl": 1.0}), decide(human, {"kl": 30.0})
    assert (waits.passed, waits.waits, waits.holds) == (False, True, True)
    assert (refused.passed, refused.waits, refused.holds) == (False, False, False)


@pytest.mark.parametrize("more", [{"against": "base", "above": 1}, {"margin": 0.1}, {"better": "lower"}])
def test_a_condition_is_against_one_thing(more: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="against"):
        Condition.model_validate({"metric": "bleu"} | more)
