"""The trainer: restarts, invariants of step 0, alarms."""

import copy
import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from alignment.errors import StageError
from alignment.policy.alarms import alarms
from alignment.policy.online.actor_critic import adapter_off, frozen_copy
from alignment.policy.ppo.metrics import overoptimisation
from alignment.rollouts.transformers_engine import TransformersEngine

ADAPTER = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
OPTIONS = {"kl_target": 0.5, "kl_horizon": 50, "whiten_rewards": True, "checkpoint_every": 1}


def build(tiny, kind, checkpoints, **options):
    """A trainer of one of the three ways to hold the models."""
    settings = tiny.settings(**(OPTIONS | {"steps": 3} | options))
    policy = tiny.policy()
    if kind == "bfloat16":
        policy = policy.to(torch.bfloat16)
    if kind == "adapter":
        torch.manual_seed(7)
        policy = get_peft_model(policy, ADAPTER)
        return tiny.trainer(settings, policy=policy, reference=adapter_off(policy), checkpoints=checkpoints)
    critic = copy.deepcopy(policy.model) if kind == "own critic" else None
    return tiny.trainer(settings, policy=policy, critic=critic, checkpoints=checkpoints)


def without_times(history):
    return [{k: v for k, v in step.items() if "second" not in k} for step in history]


@pytest.mark.parametrize("kind", ["shared", "own critic", "adapter", "bfloat16"])
def test_two_steps_are_one_a_restart_and_one_more_bit_for_bit(tiny, kind, tmp_path):
    torch.set_num_threads(1)
    whole = build(tiny, kind, tmp_path / "whole")
    whole.train(stop_after=2)
    first = build(tiny, kind, tmp_path / "parts")
    start = {name: p.detach().clone() for name, p in first.actor.trainable().items()}
    first.train(stop_after=1)
    torch.manual_seed(12345)  # a restarted process is in no particular state
    second = build(tiny, kind, tmp_path / "parts")
    state = second.train(stop_after=2)
    assert state.step == 2
    for name, parameter in whole.actor.trainable().items():
        assert torch.equal(parameter, second.actor.trainable()[name]), name
    assert any(not torch.equal(p, start[name]) for name, p in whole.actor.trainable().items())
    assert without_times(whole.state.history) == without_times(state.history)
    assert whole.controller == second.controller
    assert whole.controller.coefficient != whole.settings.kl_coefficient
    assert (whole.state.position, whole.state.tokens_trained) == (state.position, state.tokens_trained)
    theirs, ours = (t.optimizer.state_dict()["optimizer"]["state"] for t in (whole, second))
    for index, moments in theirs.items():
        assert all(torch.equal(value, ours[index][name]) for name, value in moments.items())


def test_checkpoints_are_whole_few_and_free_of_pickled_code(tiny, tmp_path):
    trainer = build(tiny, "shared", tmp_path, steps=4)
    trainer.train()
    folders = sorted(path.name for path in tmp_path.iterdir())
    assert folders == ["step-000003", "step-000004"]
    files = sorted(path.name for path in (tmp_path / "step-000004").iterdir())
    assert files == ["optimizer.pt", "random.pt", "state.json", "weights.safetensors"]
    for name in ("optimizer.pt", "random.pt"):
        torch.load(tmp_path / "step-000004" / name, weights_only=True)
    state = json.loads((tmp_path / "step-000004" / "state.json").read_text("utf-8"))
    assert state["state"]["step"] == 4
    (tmp_path / ".step-000009.partial").mkdir()  # what a death while writing leaves
    again = build(tiny, "shared", tmp_path, steps=4)
    assert again.train().step == 4
    assert len(again.state.history) == 4


def test_another_models_checkpoint_is_refused(tiny, tmp_path):
    build(tiny, "shared", tmp_path).train(stop_after=1)
    with pytest.raises(ValueError, match="other weights"):
        build(tiny, "own critic", tmp_path).train(stop_after=2)


def test_metrics_are_all_there_and_add_up(tiny):
    trainer = tiny.trainer(tiny.settings(steps=1, missing_eos_penalty=0.0))
    seen = []
    state = trainer.train(on_step=lambda step, metrics, experience: seen.append((step, metrics, experience)))
    (step, metrics, experience), = seen  # fmt: skip
    assert step == state.step == 1
    assert metrics["score"] == pytest.approx(sum(tiny.reward(experience.episodes)) / 8, abs=1e-6)
    assert metrics["kl"] == pytest.approx(0.0, abs=1e-4)
    assert metrics["reward"] == pytest.approx(metrics["score"], abs=1e-4)
    assert metrics["sampling_gap"] < 1e-4
    lengths = [len(episode.completion.tokens) for episode in experience.episodes]
    assert metrics["length"] == pytest.approx(sum(lengths) / 8)
    assert metrics["eos_rate"] == sum(e.completion.finished for e in experience.episodes) / 8
    assert 0 < metrics["entropy"] <= torch.tensor(32.0).log().item() + 1e-5
    assert state.tokens_sampled == sum(lengths)
    assert state.tokens_trained == 2 * sum(episode.length for episode in experience.episodes)
    assert {"explained_variance", "value_loss", "policy_loss", "clip_fraction_low", "clip_fraction_high",
            "approximate_kl", "ratio_max", "ratio_min", "gradient_norm", "tokens_per_second_sampling",
            "tokens_per_second_training", "seconds_scoring"} <= metrics.keys()  # fmt: skip


def test_a_reference_that_is_another_model_stops_step_0(tiny):
    trainer = tiny.trainer(reference=frozen_copy(tiny.policy(1)))
    with pytest.raises(StageError, match="policy and reference"):
        trainer.train()


def test_an_engine_that_samples_another_model_stops_step_0(tiny):
    other = TransformersEngine(tiny.policy(1), tiny.tokenizer(), stop_ids={tiny.eos})
    for cap in (None, 2.0):  # importance weights make up for other kernels, not for another model
        with pytest.raises(StageError, match="sampling and training differ"):
            tiny.trainer(tiny.settings(importance_cap=cap), engine=other).train()
    nearly = tiny.policy()
    with torch.no_grad():
        for parameter in nearly.parameters():
            parameter.mul_(1.02)  # as other kernels would have it, and more
    engine = TransformersEngine(nearly, tiny.tokenizer(), stop_ids={tiny.eos})
    with pytest.raises(StageError, match="sampling and training differ"):
        tiny.trainer(engine=engine).train()
    assert tiny.trainer(tiny.settings(importance_cap=2.0, steps=1), engine=engine).train().step == 1


def test_a_policy_that_is_not_itself_twice_stops_step_0(tiny):
    trainer = tiny.trainer()
    noise = torch.Generator().manual_seed(0)

    def disturb(_module, _inputs, output):  # dropout by another name, in training passes alone
        return output + torch.randn(output.shape, generator=noise) if torch.is_grad_enabled() else output

    trainer.actor.policy.model.embed_tokens.register_forward_hook(disturb)
    with pytest.raises(StageError, match="first ratio should be 1"):
        trainer.train()


def test_dropout_of_the_model_is_off(tiny):
    policy = tiny.policy(attention_dropout=0.5).train()
    assert tiny.trainer(tiny.settings(steps=1), policy=policy).train().step == 1


def calm(**changes):
    step = {"kl": 1.0, "entropy": 2.0, "length": 20.0, "eos_rate": 0.9, "score": 0.0}
    return step | changes


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("kl_runaway", {"kl": 80.0}),
        ("negative_kl", {"kl": -2.0}),
        ("entropy_collapse", {"entropy": 0.1}),
        ("length_blow_up", {"length": 60.0}),
        ("no_eos", {"eos_rate": 0.0}),
    ],
)
def test_each_pathology_has_its_alarm_and_no_other(name, changes):
    history = [calm()] * 3
    assert alarms(history) == []
    assert alarms([*history, calm(**changes), calm(**changes)]) == [], "two steps are not a trend"
    (alarm,) = alarms([*history, *[calm(**changes)] * 3])
    assert alarm.startswith(name)


def test_an_alarm_is_raised_once_and_kept(tiny, caplog):
    trainer = tiny.trainer(tiny.settings(steps=5), reward=lambda episodes: [0.0] * len(episodes))
    trainer.engine.stop_ids = frozenset()
    state = trainer.train()
    assert [alarm.split(": ")[1] for alarm in state.alarms] == ["no_eos"]
    assert sum("no_eos" in record.message for record in caplog.records) == 1


def test_overoptimisation_is_a_rising_score_with_a_falling_win_rate():
    fell = [[1.0] * 30 + [0.0] * 10] * 2 + [[1.0] * 18 + [0.0] * 22] * 2
    assert overoptimisation([1, 2, 3, 4], [0.75, 0.75, 0.45, 0.45], fell).startswith("overoptimisation")
    assert overoptimisation([1, 2, 3, 4], [0.60, 0.61, 0.35, 0.34]).startswith("overoptimisation")
    assert overoptimisation([1, 2, 3, 4], [0.6, 0.6, 0.5, 0.4]) is None, "four looks at a noisy rate are no trend"
    assert overoptimisation([1, 2, 3, 4], [0.4, 0.5, 0.6, 0.6]) is None
    assert overoptimisation([4, 3, 2, 1], [0.6, 0.6, 0.5, 0.4]) is None
    assert overoptimisation([1, 2], [0.6, 0.4]) is None
    with pytest.raises(ValueError, match="not of the same steps"):
        overoptimisation([1, 2], [0.5])


def test_a_score_that_rises_while_the_held_out_win_rate_falls_is_an_alarm(tiny, tmp_path):
    """A reward that grows whatever happens, and raters who like it less and less: the run says so once, and goes on."""
    rates = iter([0.6, 0.58, 0.3, 0.28, 0.2])
    rewards = iter(range(1, 9))
    trainer = tiny.trainer(
        tiny.settings(steps=5, watch_every=1, missing_eos_penalty=0.0, learning_rate=1e-6),
        reward=lambda episodes: [float(next(rewards))] * len(episodes),
        watch=lambda: next(rates),
        checkpoints=tmp_path,
    )
    state = trainer.train()
    assert [metrics["held_out_win_rate"] for metrics in state.history] == [0.6, 0.58, 0.3, 0.28, 0.2]
    (alarm,) = [alarm for alarm in state.alarms if "overoptimisation" in alarm]
    assert alarm.startswith("step 4: overoptimisation: the score rose from 1.5")
    saved = json.loads((tmp_path / "step-000005" / "state.json").read_text("utf-8"))
    assert saved["state"]["alarms"] == state.alarms


def test_the_win_rate_is_asked_for_at_its_steps_only(tiny):
    asked = []
    trainer = tiny.trainer(tiny.settings(steps=5, watch_every=2), watch=lambda: asked.append(1) or 0.5)
    history = trainer.train().history
    assert ["held_out_win_rate" in metrics for metrics in history] == [False, True, False, True, False]
    assert len(asked) == 2


def test_scores_are_in_running_deviations(tiny, tmp_path):
    """Of all answers so far, by numpy's mean and deviation, also after a restart; what is reported is the reward's."""
    rewards = []

    def reward(episodes):
        rewards.append([3.0 + sum(episode.completion.tokens) / 1000 for episode in episodes])
        return rewards[-1]

    seen = []
    for stop in (1, 2, 3):  # three processes, as it were
        settings = tiny.settings(missing_eos_penalty=0.0, steps=3, checkpoint_every=1)
        trainer = tiny.trainer(settings, reward=reward, checkpoints=tmp_path)
        trainer.train(stop_after=stop, on_step=lambda _step, metrics, experience: seen.append((metrics, experience)))
    for step, (metrics, experience) in enumerate(seen):
        so_far = np.concatenate(rewards[: step + 1])
        expected = (np.array(rewards[step]) - so_far.mean()) / so_far.std(ddof=1)
        np.testing.assert_allclose(experience.scores.numpy(), expected, atol=1e-4, rtol=1e-4)
        assert metrics["score"] == pytest.approx(np.mean(rewards[step]))
        assert metrics["score_deviation"] == pytest.approx(np.std(rewards[step]), rel=1e-4)
        assert metrics["score_unit"] == pytest.approx(so_far.std(ddof=1), rel=1e-4)


def test_the_reward_is_the_score_less_all_penalties_in_its_own_units(tiny):
    seen = []
    trainer = tiny.trainer(tiny.settings(steps=3, missing_eos_penalty=0.5, kl_coefficient=0.2, learning_rate=1e-2))
    trainer.train(on_step=lambda _step, metrics, experience: seen.append((metrics, experience)))
    for metrics, experience in seen:
        unit = metrics["score_unit"]
        penalties = 0.5 * (1 - metrics["eos_rate"]) + 0.2 * metrics["kl"]
        assert metrics["score"] == pytest.approx(sum(tiny.reward(experience.episodes)) / 8, abs=1e-6)
        assert metrics["reward"] == pytest.approx(metrics["score"] - unit * penalties, abs=1e-5)
    assert abs(seen[-1][0]["kl"]) > 1e-3


@pytest.mark.parametrize("kind", ["shared", "own critic"])
def test_the_value_function_starts_at_the_mean_return(tiny, kind):
    """Without normalised scores, too: it is where an offset of the scores would be learned as a surprise at the end."""
    trainer = build(tiny, kind, None, steps=1, normalise_scores=False, missing_eos_penalty=0.25, whiten_rewards=False)
    trainer.reward = lambda episodes: [5.0 + index for index in range(len(episodes))]
    seen = []
    trainer.train(on_step=lambda _step, _metrics, experience: seen.append(experience))
    (experience,) = seen
    cut = sum(not episode.completion.finished for episode in experience.episodes) / 8
    expected = torch.full_like(experience.values, 5.0 + 3.5 - 0.25 * cut)
    torch.testing.assert_close(experience.values[experience.mask], expected[experience.mask])


def test_a_score_that_never_varies_is_no_signal(tiny):
    """Nor is rounding: equal scores in float32 differ by a few of its last digits."""
    for noise in (0.0, 3e-7):
        rewards = iter([[-6.0 + noise * (index % 2) for index in range(8)]] * 2)
        trainer = tiny.trainer(
            tiny.settings(missing_eos_penalty=0.0, kl_coefficient=0.0, whiten_advantages=False),
            reward=lambda _episodes, rewards=rewards: next(rewards),
        )
        seen = []
        trainer.train(on_step=lambda _step, _metrics, experience, seen=seen: seen.append(experience))
        assert all(experience.scores.abs().max() < 1e-5 for experience in seen)
        assert seen[0].advantages.abs().max() < 1e-5


@pytest.mark.parametrize("paired", [True, False])
def test_a_constant_win_rate_raises_no_alarm_however_often_one_looks(paired):
    """Ten looks at 32 prompts and a score that rises: comparing the means alone fires in 85 % of runs."""
    rng = np.random.default_rng(0)
    fired = {0.0: 0, 0.4: 0}
    for fall in fired:
        for _ in range(200):
            chance = rng.beta(1, 1, size=32)
            looks, heard = [], False
            for look in range(10):
                looks.append((rng.random(32) < np.clip(chance - fall * look / 9, 0, 1)).astype(float).tolist())
                rates = [sum(one) / 32 for one in looks]
                heard |= overoptimisation(list(range(look + 1)), rates, looks if paired else None) is not None
            fired[fall] += heard
    assert fired[0.0] / 200 <= 0.05
    assert fired[0.4] / 200 >= (0.7 if paired else 0.1)
