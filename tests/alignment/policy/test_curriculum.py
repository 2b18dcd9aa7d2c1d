"""A curriculum by measured pass rate: who is asked less, how much less, and the same after a restart."""

import pytest

from alignment.policy.online.answers import choose_prompts
from alignment.policy.online.curriculum import Curriculum
from alignment.recipe.stages.grpo import GrpoStage
from alignment.recipe.stages.online import Difficulty

PASSES = Difficulty(passes_at=0.5)


def test_the_pass_rate_of_a_group_by_hand(tiny):
    curriculum = Curriculum(tiny.prompts(), PASSES, seed=1)
    curriculum.measure(["a", "b", "c"], [[0.0, 0.5, 1.0, 0.49], [0.0] * 4, [2.0] * 4])
    assert curriculum.rates == {"a": 0.5, "b": 0.0, "c": 1.0}
    curriculum.measure(["a"], [[0.0] * 4])  # the newest group counts
    assert curriculum.rates["a"] == 0.0


def test_prompts_of_no_rate_or_one_within_the_band_are_asked_in_their_turn(tiny):
    prompts = tiny.prompts()
    curriculum = Curriculum(prompts, PASSES, seed=4)
    curriculum.rates = {prompts[0][0].id: 0.1, prompts[1][0].id: 0.9, prompts[2][0].id: 0.5}
    taken = [prompt for _ in range(6) for prompt in curriculum.take(4)]
    assert taken == choose_prompts(prompts, 0, 24, 4)
    assert (curriculum.position, curriculum.passed_over) == (24, 0)


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.95, 1.0])
def test_prompts_out_of_the_band_are_asked_by_chance(rate, tiny):
    """In 400 passes over 8 prompts one out of the band is asked 100 times, give or take 4 deviations of 8.7."""
    prompts = tiny.prompts()
    curriculum = Curriculum(prompts, PASSES, seed=9)
    curriculum.rates = {prompts[3][0].id: rate}
    taken: list = []
    while curriculum.position < 400 * len(prompts):
        taken += curriculum.take(1)
    asked = [taken.count(prompt) for prompt in prompts]
    assert abs(asked.pop(3) - 100) < 35
    assert all(abs(count - 400) <= 1 for count in asked)


def test_a_step_of_prompts_that_are_all_out_of_the_band_still_has_its_prompts(tiny):
    prompts = tiny.prompts()
    curriculum = Curriculum(prompts, Difficulty(passes_at=0.5, chance=0.05), seed=2)
    curriculum.rates = {prompt.id: 0.0 for prompt, _ids in prompts}
    assert len(curriculum.take(16)) == 16
    assert curriculum.position == 16 + curriculum.passed_over > 16


def test_training_asks_by_what_it_measured_and_goes_on_alike_after_a_restart(tiny, tmp_path):
    """What each step asked is what a second curriculum chooses that is told the same scores; and a run that was stopped
    after each step has the same weights, history and rates."""
    settings = tiny.group_settings(steps=6, difficulty={"passes_at": 0.5, "low": 0.3, "high": 0.7, "chance": 0.1})
    again = Curriculum(tiny.prompts(), settings.difficulty, seed=3)
    asked, found = [], []

    def even(episode):  # some prompts always pass, some never
        return float(
            int(episode.prompt.id) % 2 == 0 if int(episode.prompt.id) < 6 else len(episode.completion.tokens) % 2
        )

    def on_step(_step, metrics, experience):
        episodes = experience.episodes[:: settings.per_prompt]
        asked.append([episode.prompt.id for episode in episodes])
        chosen = [prompt.id for prompt, _ids in again.take(2)]
        found.append(chosen)
        assert metrics["prompts_passed_over"] == again.passed_over
        again.measure(chosen, experience.totals.view(-1, settings.per_prompt).tolist())
        assert metrics["pass_rate"] == pytest.approx(sum(again.rates[name] for name in chosen) / 2)

    whole = tiny.group_trainer(settings, score=even, seed=3, checkpoints=tmp_path / "whole")
    whole.train(on_step=on_step)
    assert asked == found
    assert whole.state.pass_rates == again.rates
    assert sum(metrics["prompts_passed_over"] for metrics in whole.state.history) > 0
    for stop in range(1, 7):
        parts = tiny.group_trainer(settings, score=even, seed=3, checkpoints=tmp_path / "parts")
        parts.train(stop_after=stop)
    assert parts.state.pass_rates == whole.state.pass_rates
    assert parts.state.position == whole.state.position
    figures = ("reward", "loss", "pass_rate", "prompts_passed_over")
    assert [[step[name] for name in figures] for step in parts.state.history] == [
        [step[name] for name in figures] for step in whole.state.history
    ]
    for one, other in zip(whole.actor.parameters(), parts.actor.parameters(), strict=True):
        assert one.equal(other)


def test_what_does_not_go_together():
    options = {"kind": "grpo", "model": "base", "rewards": [{"kind": "number"}], "difficulty": {"passes_at": 1.0}}
    with pytest.raises(ValueError, match="draws steps ahead: leave one of them out"):
        GrpoStage.model_validate(options | {"max_staleness": 1, "rollout_workers": 1, "importance_cap": 2.0})
    with pytest.raises(ValueError, match=r"no pass rate is between low=0\.9 and high=0\.1"):
        GrpoStage.model_validate(options | {"difficulty": {"passes_at": 1.0, "low": 0.9, "high": 0.1}})
