"""The update: the same gradient however a minibatch is split, early stopping, and master weights."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from alignment.errors import StageError
from alignment.policy.online.answers import checked_scores, choose_prompts, sample
from alignment.policy.online.batch import by_length, collate
from alignment.policy.online.master_adamw import MasterAdamW
from alignment.policy.ppo.experience import make_experience
from alignment.policy.ppo.update import minibatches_of, piece_loss, update
from alignment.training.schedule import learning_rate_factor


def made(tiny, **options):
    """A trainer and one step's experience."""
    trainer = tiny.trainer(tiny.settings(**options))
    chosen = choose_prompts(trainer.prompts, 0, trainer.settings.episodes, 0)
    episodes = sample(trainer.engine, chosen, trainer.settings, seed=0, step=0)
    scores = checked_scores(trainer.reward, episodes)
    experience = make_experience(
        episodes, scores, trainer.actor, trainer.reference, trainer.settings, kl_coefficient=0.1
    )
    return trainer, experience


def moved(tiny):
    """As `made`, with weights away from the start, where ratios and clips say something."""
    trainer, experience = made(tiny)
    for parameter in trainer.actor.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.02)
    return trainer, experience


@pytest.mark.parametrize("size", [1, 3, 5])
def test_the_gradient_is_the_same_however_a_minibatch_is_split(tiny, size):
    trainer, experience = moved(tiny)
    lengths = experience.mask.sum(dim=1)
    assert lengths.min() < lengths.max()
    grads, totals = [], []
    for pieces in ([list(range(8))], list(by_length(range(8), experience.episodes, size))):
        trainer.actor.zero_grad()
        stats = {}
        for rows in pieces:
            loss, piece = piece_loss(rows, experience, trainer.actor, trainer.settings, experience.mask.sum())
            loss.backward()
            for name, value in piece.items():
                stats[name] = stats.get(name, 0) + value
        grads.append([p.grad.clone() for p in trainer.actor.trainable().values()])
        totals.append(stats)
    torch.testing.assert_close(grads[0], grads[1], atol=1e-6, rtol=1e-4)
    assert totals[0]["clip_fraction_low"] > 0
    for name in ("policy_loss", "value_loss", "approximate_kl", "clip_fraction_low", "ratio_mean"):
        torch.testing.assert_close(totals[0][name], totals[1][name], atol=1e-6, rtol=1e-4)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 3), min_size=8, max_size=8), st.integers(1, 4))
def test_workers_that_share_a_minibatch_add_up_to_its_gradient(tiny, owners, size):
    """Each worker has some of the answers (perhaps none), in pieces of its own; all divide by the whole's tokens."""
    trainer, experience = moved(tiny)
    whole = _gradient(trainer, experience, [list(range(8))])
    parts = [
        _gradient(trainer, experience, list(by_length(mine, experience.episodes, size)))
        for worker in range(4)
        if (mine := [row for row in range(8) if owners[row] == worker])
    ]
    summed = [torch.stack(grads).sum(dim=0) for grads in zip(*parts, strict=True)]
    torch.testing.assert_close(summed, whole, atol=1e-6, rtol=1e-4)


def _gradient(trainer, experience, pieces):
    trainer.actor.zero_grad()
    for rows in pieces:
        loss, _ = piece_loss(rows, experience, trainer.actor, trainer.settings, experience.mask.sum())
        loss.backward()
    return [parameter.grad.clone() for parameter in trainer.actor.trainable().values()]


def test_the_first_minibatch_has_ratio_one_and_no_kl(tiny):
    trainer, experience = made(tiny)
    result = update(experience, trainer.actor, trainer.optimizer, trainer.settings, seed=0, step=0)
    assert result.first["ratio_mean"] == pytest.approx(1.0, abs=1e-5)
    assert result.first["approximate_kl"] == pytest.approx(0.0, abs=1e-6)
    assert result.first["clip_fraction_high"] == result.first["clip_fraction_low"] == 0
    assert result.optimizer_steps == 4


def test_every_ratio_is_exactly_one_before_any_change(tiny):
    """In bfloat16, too, where rows come out otherwise beside other rows: three epochs that change nothing."""
    settings = tiny.settings(episodes=24, batch_size=8, minibatches=2, epochs=3, steps=1, learning_rate=1e-30,
                             critic_learning_rate=1e-30, warmup=0.0, sampling={"max_new_tokens": 16})  # fmt: skip
    policy = tiny.policy(hidden_size=512, intermediate_size=1024, initializer_range=0.1).to(torch.bfloat16)
    trainer = tiny.trainer(settings, policy=policy)
    seen = []
    trainer.train(on_step=lambda _step, metrics, experience: seen.append((metrics, experience)))
    ((metrics, experience),) = seen
    assert len(set(experience.mask.sum(dim=1).tolist())) > 3
    assert metrics["kl"] == metrics["kl_k3"] == 0
    assert metrics["ratio_min"] == metrics["ratio_max"] == 1
    assert metrics["approximate_kl"] == 0


def test_a_steps_minibatches_hold_each_answer_once_and_change_from_step_to_step(tiny):
    settings = tiny.settings(episodes=12, minibatches=3)
    steps = [minibatches_of(settings, seed=0, step=step) for step in range(2)]
    for minibatches in steps:
        assert [len(rows) for rows in minibatches] == [4, 4, 4]
        assert sorted(row for rows in minibatches for row in rows) == list(range(12))
    assert steps[0] != steps[1]
    assert steps[0] == minibatches_of(settings, seed=0, step=0)


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_the_kl_in_the_loss_adds_its_own_gradient(tiny, estimator):
    """Beside the loss without it: the coefficient times autograd's gradient of the mean estimate over the tokens."""
    trainer, experience = made(tiny, kl_in="loss", kl_estimator=estimator)
    assert experience.kl_loss_coefficient == 0.1
    torch.testing.assert_close(experience.returns, torch.where(experience.mask, experience.scores[:, None], 0.0))
    for parameter in trainer.actor.policy.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.02)
    count = experience.mask.sum()

    def gradient(loss):
        trainer.actor.zero_grad()
        loss.backward()
        return torch.cat([p.grad.flatten() for p in trainer.actor.policy.parameters()])

    whole = gradient(piece_loss(list(range(8)), experience, trainer.actor, trainer.settings, count)[0])
    experience.kl_loss_coefficient = 0.0
    without = gradient(piece_loss(list(range(8)), experience, trainer.actor, trainer.settings, count)[0])
    logprobs = trainer.actor(collate(experience.episodes, torch.device("cpu"))).logprobs[experience.mask]
    log_ratio = experience.ref_logprobs[experience.mask] - logprobs
    estimate = log_ratio.square() / 2 if estimator == "k2" else log_ratio.exp() - 1 - log_ratio
    expected = gradient(0.1 * estimate.mean())
    assert expected.norm() > 1e-3
    torch.testing.assert_close(whole - without, expected, atol=1e-6, rtol=1e-3)


def test_passes_end_once_the_policy_has_moved_far_enough(tiny):
    trainer, experience = made(tiny, max_approximate_kl=1e-7, epochs=4, learning_rate=1e-2)
    result = update(experience, trainer.actor, trainer.optimizer, trainer.settings, seed=0, step=0)
    assert result.metrics["stopped_early"] == 1
    assert 1 <= result.optimizer_steps < 8
    assert all(p.grad is None for p in trainer.actor.parameters())
    free, experience = made(tiny, epochs=4, learning_rate=1e-2)
    result = update(experience, free.actor, free.optimizer, free.settings, seed=0, step=0)
    assert result.metrics["stopped_early"] == 0
    assert result.optimizer_steps == 8


def test_a_gradient_that_is_not_finite_stops_the_run(tiny):
    trainer, experience = made(tiny)
    experience.advantages[experience.mask] = float("inf")
    before = [p.detach().clone() for p in trainer.actor.parameters()]
    with pytest.raises(StageError, match="the gradient is"):
        update(experience, trainer.actor, trainer.optimizer, trainer.settings, seed=0, step=0)
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.actor.parameters(), strict=True))


def optimizer_for(parameters, **options):
    defaults = {"total": 10, "warmup": 0.0, "schedule": "constant", "weight_decay": 0.0, "max_grad_norm": 1e9}
    return MasterAdamW([(parameters, 1e-4)], **(defaults | options))


def test_small_updates_register_in_bfloat16():
    weight = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = optimizer_for([weight])
    for _ in range(100):  # 100 × 1e-4: a hundredth in all, each of it below bfloat16's resolution at 1
        (weight * 1.0).sum().backward()
        optimizer.accumulate()
        optimizer.step()
    assert weight.detach().float().tolist() == pytest.approx([0.99] * 4, abs=4e-3)
    naive = torch.ones(4, dtype=torch.bfloat16)
    for _ in range(100):
        naive -= 1e-4
    assert (naive == 1).all()


def test_accumulated_gradients_are_summed_in_float32():
    weight = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    optimizer = optimizer_for([weight])
    for gradient in (256.0, 1.0, 1.0):
        weight.grad = torch.tensor([gradient], dtype=torch.bfloat16)
        optimizer.accumulate()
    assert optimizer.pairs[0][1].grad.item() == 258.0  # in bfloat16 256 + 1 is 256


def test_a_float32_step_is_adams(tiny):
    start = torch.randn(5, generator=torch.Generator().manual_seed(0))
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizer = optimizer_for([ours])
    reference = torch.optim.AdamW([theirs], lr=1e-4, eps=1e-5, weight_decay=0.0)
    for step in range(5):
        for parameter in (ours, theirs):
            (parameter * (step + 1)).square().sum().backward()
        optimizer.accumulate()
        optimizer.step()
        reference.step()
        reference.zero_grad()
    assert torch.equal(ours, theirs)


def test_the_schedule_by_hand():
    assert [learning_rate_factor(step, 10, 2, "linear") for step in (0, 1, 2, 6, 10)] == [0.5, 1.0, 1.0, 0.5, 0.0]
    assert [learning_rate_factor(step, 10, 0, "constant") for step in (0, 5, 10)] == [1.0, 1.0, 1.0]
    assert [learning_rate_factor(step, 10, 0, "cosine") for step in (0, 5, 10)] == pytest.approx([1.0, 0.5, 0.0])


def test_gradients_are_clipped_by_their_norm():
    weight = nn.Parameter(torch.zeros(2))
    optimizer = optimizer_for([weight], max_grad_norm=1.0)
    weight.grad = torch.tensor([3.0, 4.0])
    assert optimizer.step() == pytest.approx(5.0)
    moments = optimizer.optimizer.state[weight]["exp_avg"] / 0.1  # (1 - beta1) × the clipped gradient
    assert moments.tolist() == pytest.approx([0.6, 0.8], abs=1e-5)
