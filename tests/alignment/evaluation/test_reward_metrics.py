"""Reward functions as metrics: means and leads with their intervals."""

import pytest

from alignment.evaluation.bootstrap import difference, mean
from alignment.evaluation.metric_names import evaluation_metric_names
from alignment.evaluation.slices import leads_of
from alignment.metrics.reward_metrics import all_sums, score_answers
from alignment.recipe.stages.evaluate import EvaluateStage
from alignment.records import Message, Prompt, Response, Sampling
from alignment.reward.protocol import Component, Rewards


def test_a_share_has_wilsons_interval():
    """8 of 10 by Wilson (1927): 0.490 to 0.943, as in Newcombe 1998's method 3."""
    found = mean([1.0] * 8 + [0.0] * 2)
    assert (found.value, found.n) == (0.8, 10)
    assert found.low == pytest.approx(0.4902, abs=1e-4)
    assert found.high == pytest.approx(0.9433, abs=1e-4)
    assert mean([1.0] * 10).low == pytest.approx(0.7225, abs=1e-4)  # 1 / (1 + 1.96² / 10): never certain


def test_other_scores_have_a_bootstrap_interval():
    found = mean([0.0, -0.25, -0.5, -0.75])
    assert found.value == pytest.approx(-0.375)
    assert -0.75 <= found.low < -0.375 < found.high <= 0  # four prompts say little
    assert mean([0.5]).low == mean([0.5]).high == 0.5


def test_a_lead_is_paired():
    """One prompt of ten lost, six won, three alike: a lead of 0.5, whose interval lies above 0."""
    mine, theirs = [1.0] * 6 + [0.0] + [1.0] * 3, [0.0] * 6 + [1.0] * 4
    lead = difference(mine, theirs)
    assert lead.value == pytest.approx(0.5)
    assert -0.1 < lead.low < 0.5 < lead.high < 1
    same = difference([1.0, 0.0, 1.0], [1.0, 0.0, 1.0])
    assert (same.value, same.n) == (0.0, 3)
    assert same.low < 0 < same.high  # three ties are no proof of equality
    assert difference([0.5, 0.75], [0.25, 0.5]).value == pytest.approx(0.25)


def test_scores_are_by_model_and_reward():
    prompts = [Prompt(id=str(i), messages=(Message(role="user", content="Well?"),)) for i in range(3)]

    def answers(*texts):
        return [
            Response(
                id=str(i), prompt_id=str(i), text=text, model="m", sampling=Sampling(), seed=0, tokens=1, finished=True
            )
            for i, text in enumerate(texts)
        ]

    rewards = Rewards([Component("long", 3.0, lambda batch: [float(len(one.text) > 1) for one in batch])])
    scores = score_answers(rewards, prompts, {"new": answers("ab", "abc", "a"), "base": answers("a", "ab", "a")})
    assert scores == {"new": {"long": [1.0, 1.0, 0.0]}, "base": {"long": [0.0, 1.0, 0.0]}}
    stage = EvaluateStage.model_validate(
        {"kind": "evaluate", "model": "new", "rewards": [{"kind": "length", "name": "long"}]}
    )
    found = leads_of(all_sums(stage, {}, scores), "new")
    assert list(found) == ["base"]
    assert found["base"]["long"].value == pytest.approx(1 / 3)


def test_the_names_are_known_before_anything_runs():
    stage = EvaluateStage.model_validate(
        {"kind": "evaluate", "model": "grpo", "rewards": [{"kind": "number"}, {"kind": "length", "name": "short"}]}
    )
    names = evaluation_metric_names(stage)
    assert names[:3] == ["reward.grpo.number.value", "reward.grpo.number.low", "reward.grpo.number.high"]
    assert "reward.base.short.value" in names
    assert "reward_lead.base.number.low" in names
    assert not [name for name in names if name.startswith("reward_lead.grpo")]
