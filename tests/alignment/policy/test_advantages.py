"""Advantages against hand-computed numbers and against plain loops over ragged sequences."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.policy.advantages import (
    generalized_advantage_estimation,
    group_advantages,
    reinforce_plus_plus_advantages,
    unit_variance,
    whiten,
    whiten_by_answer,
)

NAN = float("nan")


def plain_gae(rewards, values, gamma, lam):
    """One sequence as lists: the sum over l of (gamma lam)^l delta_{t+l}, written out."""
    deltas = [r + gamma * (values[t + 1] if t + 1 < len(values) else 0.0) - values[t] for t, r in enumerate(rewards)]
    return [
        sum((gamma * lam) ** (later - t) * deltas[later] for later in range(t, len(deltas))) for t in range(len(deltas))
    ]


def test_gae_by_hand():
    rewards = torch.tensor([[0.0, 0.0, 1.0]])
    values = torch.tensor([[0.5, 0.6, 0.8]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    advantages, returns = generalized_advantage_estimation(rewards, values, mask, gamma=0.9, lam=0.5)
    # deltas: 0.9*0.6-0.5 = 0.04; 0.9*0.8-0.6 = 0.12; 1-0.8 = 0.2; trace factor 0.45
    expected = torch.tensor([[0.04 + 0.45 * (0.12 + 0.45 * 0.2), 0.12 + 0.45 * 0.2, 0.2]])
    torch.testing.assert_close(advantages, expected)
    torch.testing.assert_close(returns, expected + values)


def test_gae_skips_holes_and_padding_whatever_they_hold():
    rewards = torch.tensor([[0.0, NAN, 0.0, 1.0, 99.0]])
    values = torch.tensor([[0.5, 77.0, 0.6, 0.8, NAN]])
    mask = torch.tensor([[True, False, True, True, False]])
    advantages, returns = generalized_advantage_estimation(rewards, values, mask, gamma=0.9, lam=0.5)
    expected = torch.tensor([[0.1345, 0.0, 0.21, 0.2, 0.0]])
    torch.testing.assert_close(advantages, expected)
    torch.testing.assert_close(returns, torch.tensor([[0.6345, 0.0, 0.81, 1.0, 0.0]]))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0, 1))
def test_gae_is_the_plain_loop_over_ragged_sequences(seed, gamma, lam):
    generator = torch.Generator().manual_seed(seed)
    shape = (4, 9)
    rewards = torch.randn(shape, generator=generator, dtype=torch.float64)
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    mask = torch.rand(shape, generator=generator) < 0.6
    advantages, returns = generalized_advantage_estimation(rewards, values, mask, gamma=gamma, lam=lam)
    for row in range(shape[0]):
        kept = mask[row].nonzero().squeeze(-1).tolist()
        expected = plain_gae(rewards[row, kept].tolist(), values[row, kept].tolist(), gamma, lam)
        assert advantages[row, kept].tolist() == pytest.approx(expected, abs=1e-9)
        assert returns[row, kept].tolist() == pytest.approx(
            [a + v for a, v in zip(expected, values[row, kept].tolist(), strict=True)], abs=1e-9
        )
    assert (advantages[~mask] == 0).all()
    assert (returns[~mask] == 0).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_gae_undiscounted_is_reward_to_go_minus_value(seed):
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randn(3, 7, generator=generator, dtype=torch.float64)
    values = torch.randn(3, 7, generator=generator, dtype=torch.float64)
    mask = torch.ones(3, 7, dtype=torch.bool)
    advantages, returns = generalized_advantage_estimation(rewards, values, mask, gamma=1.0, lam=1.0)
    to_go = rewards.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(advantages, to_go - values)
    torch.testing.assert_close(returns, to_go)
    one_step, _ = generalized_advantage_estimation(rewards, values, mask, gamma=1.0, lam=0.0)
    following = torch.cat([values[:, 1:], torch.zeros(3, 1, dtype=torch.float64)], dim=1)
    torch.testing.assert_close(one_step, rewards + following - values)


def test_gae_carries_no_gradient_and_widens():
    values = torch.randn(2, 3, dtype=torch.bfloat16, requires_grad=True)
    mask = torch.ones(2, 3, dtype=torch.bool)
    advantages, returns = generalized_advantage_estimation(torch.ones(2, 3), values, mask, gamma=1.0, lam=0.95)
    assert advantages.dtype == torch.float32
    assert not advantages.requires_grad
    assert not returns.requires_grad


def test_whiten_by_hand():
    x = torch.tensor([[1.0, 3.0, NAN], [5.0, 100.0, 7.0]])
    mask = torch.tensor([[True, True, False], [True, False, True]])
    # kept: 1 3 5 7, mean 4, population variance 5
    scale = 5**-0.5
    expected = torch.tensor([[-3 * scale, -scale, 0.0], [scale, 0.0, 3 * scale]])
    torch.testing.assert_close(whiten(x, mask), expected)
    unshifted = torch.where(mask, expected + 4, 0.0)
    torch.testing.assert_close(whiten(x, mask, shift_mean=False), unshifted)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 100), st.floats(-100, 100))
def test_whiten_gives_unit_variance_and_the_mean_asked_for(seed, scale, shift):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5, 8, generator=generator, dtype=torch.float64) * scale + shift
    mask = torch.rand(5, 8, generator=generator) < 0.7
    mask[0, :2] = True
    for shift_mean in (True, False):
        kept = whiten(x, mask, shift_mean=shift_mean)[mask]
        assert kept.std(correction=0).item() == pytest.approx(1, abs=1e-3)
        assert kept.mean().item() == pytest.approx(0.0 if shift_mean else x[mask].mean().item(), abs=1e-6)


def test_whiten_of_equal_or_no_entries_is_finite():
    mask = torch.ones(2, 2, dtype=torch.bool)
    assert (whiten(torch.full((2, 2), 3.0), mask) == 0).all()
    assert (whiten(torch.full((2, 2), 3.0), ~mask) == 0).all()


def test_group_advantages_by_hand():
    rewards = torch.tensor([1.0, 0.0, 2.0, 2.0])
    half = 0.5**0.5  # sample deviation of (1, 0)
    by_group = torch.tensor([0.5, -0.5, 0.0, 0.0]) / torch.tensor([half + 1e-4, half + 1e-4, 1e-4, 1e-4])
    torch.testing.assert_close(group_advantages(rewards, group_size=2, scale="group"), by_group)
    deviation = (2.75 / 3) ** 0.5  # around the mean 1.25: 0.0625 + 1.5625 + 0.5625 + 0.5625 = 2.75
    by_batch = torch.tensor([0.5, -0.5, 0.0, 0.0]) / (deviation + 1e-4)
    torch.testing.assert_close(group_advantages(rewards, group_size=2, scale="batch"), by_batch)
    none = group_advantages(rewards, group_size=2, scale="none")
    torch.testing.assert_close(none, torch.tensor([0.5, -0.5, 0.0, 0.0]))


def test_group_of_one_has_no_advantage():
    for scale in ("group", "batch", "none"):
        assert group_advantages(torch.tensor([3.0]), group_size=1, scale=scale).tolist() == [0.0]


def test_group_advantages_refuses_broken_groups():
    with pytest.raises(ValueError, match="whole groups"):
        group_advantages(torch.zeros(5), group_size=2, scale="none")
    with pytest.raises(ValueError, match="scale"):
        group_advantages(torch.zeros(4), group_size=2, scale="other")


def test_whitening_by_answer_by_hand():
    """Of three tokens and of one: their means are 1 and 3, so 2 is subtracted; squares of 1, 4, 0 and 1."""
    x = torch.tensor([[1.0, 0.0, 2.0], [3.0, math.nan, 7.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    root = math.sqrt((1 + 4 + 0 + 1) / 4)
    expected = torch.tensor([[-1.0, -2.0, 0.0], [1.0, 0.0, 0.0]]) / root
    torch.testing.assert_close(whiten_by_answer(x, mask), expected)
    assert (whiten_by_answer(torch.full((2, 2), 3.0), mask[:, :2]) == 0).all()
    assert (whiten_by_answer(x, torch.zeros_like(mask)) == 0).all()
    empty = torch.cat([x, torch.full((1, 3), 9.0)]), torch.cat([mask, torch.zeros(1, 3, dtype=torch.bool)])
    torch.testing.assert_close(whiten_by_answer(*empty)[:2], expected)


def test_rewards_of_unit_variance_leave_nothing_at_nothing():
    """Ten tokens of which the last is rewarded by -6: a reward for the others would be one for length."""
    rewards, mask = torch.zeros(1, 11), torch.ones(1, 11, dtype=torch.bool)
    rewards[0, 9], rewards[0, 10], mask[0, 10] = -6.0, 99.0, False
    found = unit_variance(rewards, mask)
    deviation = math.sqrt(36 / 10 - 0.36)
    assert found[0, 9].item() == pytest.approx(-6 / deviation)
    assert found.count_nonzero() == 1
    assert unit_variance(rewards, torch.zeros_like(mask)).count_nonzero() == 0


def test_reinforce_plus_plus_by_hand():
    """Rewards 2 and 0, KL of 1 a token at 0.5: to come are 1.5 - 0.5, 1.5 at the last token, and -0.5."""
    kl = torch.tensor([[1.0, 1.0], [1.0, math.nan]])
    mask = torch.tensor([[True, True], [True, False]])
    found = reinforce_plus_plus_advantages(torch.tensor([2.0, 0.0]), kl, mask, kl_coefficient=0.5)
    to_come = [1.0, 1.5, -0.5]
    mean = sum(to_come) / 3
    deviation = math.sqrt(sum((value - mean) ** 2 for value in to_come) / 3)
    expected = [(value - mean) / deviation for value in to_come]
    assert [found[0, 0].item(), found[0, 1].item(), found[1, 0].item()] == pytest.approx(expected, abs=1e-5)
    assert found[1, 1] == 0
