"""Losses against hand-computed numbers, exact distributions, and each other under every split of a batch."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.policy.losses import importance_weights, kl_estimate, masked_mean, ppo_policy_loss, ppo_value_loss

NAN = float("nan")


def test_kl_estimates_by_hand():
    logprobs, reference = torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.0])
    torch.testing.assert_close(kl_estimate(logprobs, reference, estimator="k1"), torch.tensor([0.5, -1.0]))
    torch.testing.assert_close(kl_estimate(logprobs, reference, estimator="k2"), torch.tensor([0.125, 0.5]))
    expected = torch.tensor([math.exp(-0.5) - 1 + 0.5, math.e - 1 - 1])
    torch.testing.assert_close(kl_estimate(logprobs, reference, estimator="k3"), expected)
    with pytest.raises(ValueError, match="k4"):
        kl_estimate(logprobs, reference, estimator="k4")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-20, 0), min_size=1, max_size=8), st.integers(0, 1000))
def test_k3_is_never_negative_and_all_vanish_at_equality(logprobs, seed):
    policy = torch.tensor(logprobs)
    noise = torch.randn(policy.shape, generator=torch.Generator().manual_seed(seed)) * 10.0 ** -(seed % 8)
    assert (kl_estimate(policy, policy + noise, estimator="k3") >= 0).all()
    for estimator in ("k1", "k2", "k3"):
        assert (kl_estimate(policy, policy.clone(), estimator=estimator) == 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_k1_and_k3_are_unbiased(seed):
    generator = torch.Generator().manual_seed(seed)
    policy = torch.randn(6, generator=generator, dtype=torch.float64).log_softmax(-1)
    reference = torch.randn(6, generator=generator, dtype=torch.float64).log_softmax(-1)
    exact = (policy.exp() * (policy - reference)).sum().item()
    # in expectation over the categorical, exactly
    for estimator in ("k1", "k3"):
        expectation = (policy.exp() * kl_estimate(policy, reference, estimator=estimator)).sum().item()
        assert expectation == pytest.approx(exact, abs=1e-12)
    # and by sampling, within four standard errors
    drawn = torch.multinomial(policy.exp(), 100_000, replacement=True, generator=generator)
    for estimator in ("k1", "k3"):
        estimates = kl_estimate(policy[drawn], reference[drawn], estimator=estimator)
        assert abs(estimates.mean().item() - exact) < 4 * estimates.std().item() / math.sqrt(len(drawn))


@pytest.mark.parametrize("seed", range(3))
def test_gradient_of_k2_is_the_gradient_of_the_kl(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, generator=generator, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(5, generator=generator, dtype=torch.float64).log_softmax(-1)
    policy = logits.log_softmax(-1)
    (exact,) = torch.autograd.grad((policy.exp() * (policy - reference)).sum(), logits, retain_graph=True)
    expected = (policy.exp().detach() * kl_estimate(policy, reference, estimator="k2")).sum()
    (found,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(found, exact)


@pytest.mark.parametrize("seed", range(3))
def test_what_each_kl_estimator_teaches_in_the_reward_and_in_the_loss(seed):
    """Exact expected gradients over a categorical, near the reference, as shares of the gradient of KL(policy ‖ ref).

    In the reward k1 is the penalty, and k2 and k3 are nearly none; in the loss k1 is none, and k2 is it. k3 in the loss
    is that of KL(ref ‖ policy).
    """
    generator = torch.Generator().manual_seed(seed)
    reference = torch.randn(8, generator=generator, dtype=torch.float64).log_softmax(-1)
    step = 0.05 * torch.randn(8, generator=generator, dtype=torch.float64)
    logits = (reference + step).requires_grad_()

    def gradient(loss):
        return torch.autograd.grad(loss, logits)[0]

    policy = logits.log_softmax(-1)
    exact = gradient((policy.exp() * (policy - reference)).sum())
    backward = gradient((reference.exp() * (reference - logits.log_softmax(-1))).sum())

    def share(found):
        return (found @ exact / exact.square().sum()).item()

    rows = torch.ones(8, 1, dtype=torch.bool)  # every token there is, as an answer of its own
    for estimator, in_reward, in_loss in (("k1", 1.0, 0.0), ("k2", 0.0, 1.0), ("k3", 0.0, None)):
        logprobs = logits.log_softmax(-1)
        penalty = kl_estimate(logprobs, reference, estimator=estimator)
        chosen, drawn = logprobs[:, None], logprobs.exp().detach()[:, None]
        loss, _stats = ppo_policy_loss(
            chosen, chosen.detach(), -penalty.detach()[:, None], rows,
            clip_low=0.2, clip_high=0.2, weights=drawn, denominator=1.0,
        )  # fmt: skip
        assert share(gradient(loss)) == pytest.approx(in_reward, abs=0.05)
        logprobs = logits.log_softmax(-1)
        penalty = kl_estimate(logprobs, reference, estimator=estimator)
        found = gradient((logprobs.exp().detach() * penalty).sum())
        if in_loss is None:
            torch.testing.assert_close(found, backward)
        else:
            assert share(found) == pytest.approx(in_loss, abs=1e-9)


def policy_loss(ratios, advantages, **options):
    """The loss of one row of tokens given by their ratios."""
    old = torch.full((1, len(ratios)), -1.0)
    logprobs = old + torch.tensor([ratios]).log()
    mask = torch.ones_like(old, dtype=torch.bool)
    return ppo_policy_loss(logprobs, old, torch.tensor([advantages]), mask, **options)


def test_policy_loss_by_hand():
    ratios, advantages = [1.0, 1.5, 0.5, 1.5, 0.5], [2.0, 1.0, 1.0, -1.0, -1.0]
    loss, stats = policy_loss(ratios, advantages, clip_low=0.2, clip_high=0.3)
    # 2; min(1.5, 1.3) = 1.3; min(0.5, 0.8) = 0.5; min(-1.5, -1.3) = -1.5; min(-0.5, -0.8) = -0.8
    assert loss.item() == pytest.approx(-(2 + 1.3 + 0.5 - 1.5 - 0.8) / 5)
    assert stats["clip_fraction_high"].item() == pytest.approx(1 / 5)
    assert stats["clip_fraction_low"].item() == pytest.approx(1 / 5)
    assert stats["ratio_mean"].item() == pytest.approx(1.0)
    assert stats["ratio_max"].item() == pytest.approx(1.5)
    assert stats["ratio_min"].item() == pytest.approx(0.5)
    approximate = sum(r - 1 - math.log(r) for r in ratios) / 5
    assert stats["approximate_kl"].item() == pytest.approx(approximate, rel=1e-5)


def test_dual_clip_by_hand():
    loss, stats = policy_loss([10.0, 10.0, 2.0], [-1.0, 1.0, -1.0], clip_low=0.2, clip_high=0.2, dual_clip=3.0)
    # max(-10, -3) = -3; min(10, 1.2) = 1.2; max(-2, -3) = -2
    assert loss.item() == pytest.approx(-(-3 + 1.2 - 2) / 3)
    assert stats["dual_clip_fraction"].item() == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="above 1"):
        policy_loss([1.0], [1.0], clip_low=0.2, clip_high=0.2, dual_clip=1.0)


def test_first_ratio_is_one_and_first_gradient_is_the_policy_gradient():
    generator = torch.Generator().manual_seed(0)
    logprobs = torch.randn(3, 4, generator=generator, requires_grad=True)
    advantages = torch.randn(3, 4, generator=generator)
    mask = torch.ones(3, 4, dtype=torch.bool)
    loss, stats = ppo_policy_loss(logprobs, logprobs.detach(), advantages, mask, clip_low=0.2, clip_high=0.2)
    loss.backward()
    assert stats["ratio_min"] == stats["ratio_max"] == 1
    assert stats["approximate_kl"] == 0
    assert loss.item() == pytest.approx(-advantages.mean().item())
    torch.testing.assert_close(logprobs.grad, -advantages / 12)


def test_masked_entries_touch_nothing():
    mask = torch.tensor([[True, False, True]])
    logprobs = torch.tensor([[-1.0, NAN, -2.0]], requires_grad=True)
    old = torch.tensor([[-1.1, 500.0, -1.9]])
    advantages = torch.tensor([[1.0, NAN, -1.0]])
    loss, stats = ppo_policy_loss(logprobs, old, advantages, mask, clip_low=0.2, clip_high=0.2, dual_clip=3.0,
                                  weights=torch.tensor([[1.0, NAN, 1.0]]))  # fmt: skip
    loss.backward()
    assert loss.item() == pytest.approx(-(math.exp(0.1) - math.exp(-0.1)) / 2, rel=1e-5)
    assert logprobs.grad[0, 1] == 0
    assert logprobs.grad.isfinite().all()
    assert all(value.isfinite() for value in stats.values())
    values = torch.tensor([[1.0, NAN, 2.0]], requires_grad=True)
    loss, stats = ppo_value_loss(values, torch.tensor([[1.0, NAN, 2.0]]), torch.tensor([[0.0, NAN, 2.5]]), mask, clip=9)
    loss.backward()
    assert loss.item() == pytest.approx((1 + 0.25) / 2 / 2)
    assert values.grad.tolist() == [[0.5, 0.0, -0.25]]


def test_an_empty_mask_costs_nothing():
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    loss, stats = ppo_policy_loss(torch.randn(2, 3), torch.randn(2, 3), torch.randn(2, 3), nothing,
                                  clip_low=0.2, clip_high=0.2)  # fmt: skip
    assert loss == 0
    assert stats["ratio_mean"] == 1
    assert masked_mean(torch.ones(2, 3), nothing) == 0


def test_value_loss_by_hand():
    values, old = torch.tensor([[1.0, 0.3, 0.5]]), torch.tensor([[0.0, 0.2, 1.0]])
    returns = torch.tensor([[1.0, 0.0, 0.4]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    loss, stats = ppo_value_loss(values, old, returns, mask, clip=0.2)
    # clipped values 0.2, 0.3, 0.8: errors max(0, .64), max(.09, .09), max(.01, .16)
    assert loss.item() == pytest.approx((0.64 + 0.09 + 0.16) / 3 / 2)
    assert stats["value_clip_fraction"].item() == pytest.approx(2 / 3)
    assert stats["value_error"].item() == pytest.approx((0 + 0.09 + 0.01) / 3)
    free, _ = ppo_value_loss(values, old, returns, mask, clip=None)
    assert free.item() == pytest.approx((0 + 0.09 + 0.01) / 3 / 2)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.integers(1, 7), max_size=3, unique=True))
def test_the_gradient_is_the_same_whichever_way_a_batch_is_split(seed, cuts):
    generator = torch.Generator().manual_seed(seed)
    shape = (8, 5)
    logprobs = torch.randn(shape, generator=generator, dtype=torch.float64)
    old = logprobs + torch.randn(shape, generator=generator, dtype=torch.float64) * 0.3
    advantages = torch.randn(shape, generator=generator, dtype=torch.float64)
    mask = torch.rand(shape, generator=generator) < 0.6

    def gradient(pieces):
        policy, values = logprobs.clone().requires_grad_(), old.clone().requires_grad_()
        for rows in pieces:
            loss, _ = ppo_policy_loss(policy[rows], old[rows], advantages[rows], mask[rows], clip_low=0.2,
                                      clip_high=0.28, dual_clip=3.0, denominator=mask.sum())  # fmt: skip
            error, _ = ppo_value_loss(values[rows], logprobs[rows], advantages[rows], mask[rows], clip=0.2,
                                      denominator=mask.sum())  # fmt: skip
            (loss + error).backward()
        return policy.grad, values.grad

    bounds = [0, *sorted(cuts), 8]
    pieces = [slice(a, b) for a, b in itertools.pairwise(bounds)]
    for whole, split in zip(gradient([slice(0, 8)]), gradient(pieces), strict=True):
        torch.testing.assert_close(whole, split)


def test_importance_weights_by_hand():
    weights = importance_weights(torch.tensor([-1.0, -1.0, -2.0]), torch.tensor([-1.0, -3.0, -1.0]), cap=2.0)
    torch.testing.assert_close(weights, torch.tensor([1.0, 2.0, math.exp(-1)]))


def test_importance_weights_correct_the_gradient():
    """Tokens drawn from another distribution, weighted, have the policy's own expected gradient."""
    policy = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
    engine = torch.tensor([0.4, 0.35, 0.25], dtype=torch.float64).log()
    advantages = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    mask = torch.ones(1, 3, dtype=torch.bool)

    def expected_gradient(drawn_from, weights):
        logprobs = policy[None].clone().requires_grad_()
        # one token of each kind, counted by its probability of being drawn
        loss, _ = ppo_policy_loss(logprobs, policy[None], (advantages * drawn_from.exp())[None], mask, clip_low=0.2,
                                  clip_high=0.2, weights=weights)  # fmt: skip
        loss.backward()
        return logprobs.grad

    weights = importance_weights(policy, engine, cap=10.0)[None]
    torch.testing.assert_close(expected_gradient(engine, weights), expected_gradient(policy, None))
