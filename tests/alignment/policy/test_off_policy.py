"""Sampler and trainer beside each other: weights by hand, the bound that stops, and answers of older weights."""

import math
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from alignment.errors import StageError
from alignment.policy.online.off_policy import correction, gap_alarm, gap_limit, gap_metrics

LOG2 = math.log(2.0)


def weights(tiny, **options):
    """Of an answer of three tokens, whose ratios are 4, 1 and 1/4, and one of one, of ratio 1.5; the cap is 2."""
    old = torch.tensor([[2 * LOG2, 0.0, -2 * LOG2], [math.log(1.5), math.nan, math.nan]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    settings = tiny.group_settings(importance_cap=2.0, **options)
    return correction(old, torch.where(mask, 0.0, math.nan), mask, settings, 2.0)


def test_weights_are_truncated_or_masked_by_token_or_answer(tiny):
    found = weights(tiny)
    torch.testing.assert_close(found[0], torch.tensor([2.0, 1.0, 0.25]))
    assert found[1, 0].item() == pytest.approx(1.5)
    torch.testing.assert_close(weights(tiny, importance="mask")[0], torch.tensor([0.0, 1.0, 0.0]))
    assert weights(tiny, importance="mask")[1, 0].item() == pytest.approx(1.5)
    # The first answer's whole ratio is 4 × 1 × 1/4.
    torch.testing.assert_close(weights(tiny, importance_by="sequence")[0], torch.ones(3))
    torch.testing.assert_close(weights(tiny, importance_by="sequence", importance="mask")[0], torch.ones(3))


def test_the_gap_is_a_mean_and_a_tail_over_tokens():
    """99 tokens apart by 0 and one by 1: a mean of 0.01, and a 99th percentile of 0.01 (linear, between 0 and 1)."""
    trained = torch.zeros(10, 11)
    sampled = torch.zeros(10, 11)
    sampled[3, 4], sampled[:, 10] = 1.0, math.nan
    mask = torch.ones(10, 11, dtype=torch.bool)
    mask[:, 10] = False
    found = gap_metrics(trained, sampled, mask)
    assert found["sampling_gap"] == pytest.approx(0.01)
    assert found["sampling_gap_p99"] == pytest.approx(0.01, abs=1e-5)
    assert gap_metrics(trained, None, mask) == {}


def test_the_bounds_are_those_that_are_stated(tiny):
    settings = tiny.group_settings()
    assert gap_limit(settings, torch.float32, None) == 0.01
    assert gap_limit(settings, torch.bfloat16, None) == 0.1
    assert gap_limit(settings, torch.float32, 2.0) == 0.1
    assert gap_limit(tiny.group_settings(max_sampling_gap=0.3), torch.float32, None) == 0.3
    stale = tiny.group_settings(max_staleness=2, rollout_workers=1, importance_cap=2.0)
    assert gap_limit(stale, torch.float32, 2.0) == 0.5
    assert gap_alarm({"sampling_gap": 0.006, "sampling_gap_p99": 0.1}, 0.01)[0].startswith("sampling_gap: 0.006")
    assert gap_alarm({"sampling_gap": 0.004, "sampling_gap_p99": 0.1}, 0.01) == []
    assert gap_alarm({}, 0.01) == []


@pytest.mark.parametrize("kind", ["grpo", "rloo", "ppo"])
def test_an_engine_that_does_not_take_the_weights_over_is_stopped(tiny, kind):
    """Without a correction: the first step is the policy's own, those after it are of weights that nobody has."""
    policy = tiny.policy()
    engine = tiny.apart(policy, deaf=True)
    if kind == "ppo":
        settings = tiny.settings(steps=6, learning_rate=1e-2, importance="off")
        trainer = tiny.trainer(settings, policy=policy, engine=engine)
    else:
        settings = tiny.group_settings(kind, steps=6, importance="off")
        trainer = tiny.group_trainer(settings, policy=policy, engine=engine)
    with pytest.raises(
        StageError, match=r"^step [1-5]: log-probabilities of sampling and training differ by .*0\.01: "
    ):
        trainer.train()
    assert 1 <= trainer.state.step < 6


def test_an_engine_that_takes_the_weights_over_is_not_stopped(tiny):
    policy = tiny.policy()
    trainer = tiny.group_trainer(tiny.group_settings(steps=6), policy=policy, engine=tiny.apart(policy))
    history = trainer.train().history
    assert max(step["sampling_gap"] for step in history) < 1e-4
    assert all(step["sampling_gap_p99"] >= step["sampling_gap"] / 100 for step in history)


class Elsewhere:
    """An engine that reports log-probabilities which are off: each one by 0.03 nats, as other kernels would be."""

    def __init__(self, engine):
        self.engine = engine

    def generate(self, prompts, **options):
        groups = self.engine.generate(prompts, **options)
        return [[replace(one, logprobs=one.logprobs - 0.03) for one in group] for group in groups]


def test_another_engine_is_corrected_by_default_and_watched(tiny):
    """Each weight is e^0.03: the gradient is as much larger, and the loss of the first pass likewise."""

    def first(other_engine, **options):
        policy = tiny.policy()
        inner = tiny.apart(policy).engine
        settings = tiny.group_settings(steps=1, max_grad_norm=1e9, **options)
        trainer = tiny.group_trainer(
            settings, policy=policy, engine=Elsewhere(inner) if other_engine else inner, other_engine=other_engine,
            score=lambda episode: sum(episode.completion.tokens) / 100,
        )  # fmt: skip
        return trainer.train()

    own, corrected = first(False), first(True)
    ratio = corrected.history[0]["grad_norm"] / own.history[0]["grad_norm"]
    assert ratio == pytest.approx(math.exp(0.03), rel=1e-4)
    assert corrected.history[0]["sampling_gap"] == pytest.approx(0.03, abs=1e-4)
    assert corrected.alarms == []
    with pytest.raises(StageError, match="step 0"):
        first(True, importance="off")


@pytest.mark.parametrize("staleness", [0, 1, 4])
@pytest.mark.parametrize("kind", ["grpo", "rloo", "ppo"])
def test_answers_are_as_old_as_they_may_be(tiny, kind, staleness, tmp_path):
    """Step t learns from what was drawn with the weights of step t - k, the first ones with those of the start."""
    ahead = {"max_staleness": staleness, "rollout_workers": 1, "importance_cap": 2.0} if staleness else {}

    def build():
        policy = tiny.policy()
        if kind == "ppo":
            settings = tiny.settings(steps=6, checkpoint_every=1, **ahead)
            return tiny.trainer(settings, policy=policy, engine=tiny.apart(policy), checkpoints=tmp_path)
        settings = tiny.group_settings(kind, steps=6, learning_rate=1e-3, **ahead)
        return tiny.group_trainer(settings, policy=policy, engine=tiny.apart(policy), checkpoints=tmp_path)

    versions = []

    def on_step(_step, _metrics, experience):
        versions.append({episode.completion.version for episode in experience.episodes})

    build().train(stop_after=3, on_step=on_step)  # and once more from its checkpoint, with what was drawn ahead
    build().train(on_step=on_step)
    assert versions == [{max(0, step - staleness)} for step in range(6)]


def test_older_weights_are_clipped_about_the_steps_own_policy(tiny):
    """The first pass over a step's answers has ratio 1 however old they are; their age is in the weights."""
    policy = tiny.policy()
    settings = tiny.group_settings(
        steps=5, epochs=2, learning_rate=3e-3, max_staleness=4, rollout_workers=1, importance_cap=2.0
    )
    trainer = tiny.group_trainer(settings, policy=policy, engine=tiny.apart(policy))
    history = trainer.train().history
    assert history[-1]["sampling_gap"] > 1e-3  # they are old
    assert abs(history[-1]["ratio_mean"] - 1) < history[-1]["sampling_gap"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"importance": "off", "importance_cap": 2.0},
            "importance_cap=2 bounds weights that importance=off leaves",
        ),
        ({"max_staleness": 2}, "needs rollout_workers"),
        ({"max_staleness": 2, "rollout_workers": 1}, "importance_cap"),
        ({"max_staleness": 5, "rollout_workers": 1, "importance_cap": 2.0}, "less than or equal to 4"),
        ({"importance_level": "sequence"}, "use loss: gspo"),
        ({"importance_level": "sequence", "clip_low": 0.2, "clip_high": 0.2}, "clips nothing"),
        ({"loss": "gspo", "clip_high": 0.2}, "clips nothing"),
        ({"loss": "cispo", "clip_high": 0.2}, "every weight would be at most 0.2"),
        ({"loss": "cispo", "clip_low": 0.2}, "clip_low=0.2 means nothing for loss=cispo"),
        ({"loss": "sapo", "clip_high": 0.2}, "clip_high=0.2 means nothing for loss=sapo"),
        ({"loss": "vespo", "delta": 2.0}, "delta=2 means nothing for loss=vespo"),
        ({"loss": "grpo", "delta": 1.1}, "delta=1.1 is not above"),
        ({"advantages": "leave_one_out", "scale_rewards": "batch"}, "scale_rewards=batch means nothing"),
    ],
)
def test_settings_that_fit_no_loss_are_refused(tiny, changes, words):
    with pytest.raises(ValidationError, match=words.replace("(", r"\(")):
        tiny.group_settings(**changes)


@pytest.mark.parametrize(
    ("changes", "clips", "level"),
    [
        ({}, (0.2, 0.28), "token"),
        ({"loss": "grpo"}, (0.2, 0.2), "token"),
        ({"loss": "gspo"}, (3e-4, 4e-4), "sequence"),
        (
            {"loss": "grpo", "importance_level": "sequence", "clip_low": 1e-3, "clip_high": 2e-3},
            (1e-3, 2e-3),
            "sequence",
        ),
        ({"loss": "cispo"}, (0.0, 5.0), "token"),
        ({"loss": "dapo", "clip_high": 0.2}, (0.2, 0.2), "token"),
    ],
)
def test_each_loss_has_its_own_range(tiny, changes, clips, level):
    settings = tiny.group_settings(**changes)
    assert settings.clips_used() == clips
    assert settings.level_used() == level


def test_rloo_has_trls_range(tiny):
    assert tiny.group_settings("rloo").clips_used() == (0.2, 0.2)
