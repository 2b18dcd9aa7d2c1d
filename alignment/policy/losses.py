"""The losses of policy optimisation, per token, on tensors; no model.

Masks are True for what counts; what is masked out may hold anything, NaN included, without touching loss or gradient.
A loss is a mean over kept tokens. ``denominator`` replaces their number: a minibatch that is split into pieces (for
memory, or over workers) passes the whole minibatch's count with each, and the pieces' gradients add up to the same
gradient whichever way it is split.
"""

from typing import Literal, TypeAlias

import torch

from alignment.policy.objectives.table import OBJECTIVES, token_losses
from alignment.policy.objectives.terms import Options, Terms
from alignment.training.token_logprobs import token_logprobs

__all__ = [
    "importance_weights", "kl_estimate", "masked_mean", "ppo_policy_loss", "ppo_value_loss", "ratio_stats",
    "token_logprobs",
]  # fmt: skip

KlEstimator: TypeAlias = Literal["k1", "k2", "k3"]
Stats: TypeAlias = dict[str, torch.Tensor]


def masked_mean(x: torch.Tensor, mask: torch.Tensor, denominator: float | torch.Tensor | None = None) -> torch.Tensor:
    """The sum of kept entries over their number, or over ``denominator``; 0 where nothing is kept."""
    mask = mask.bool()
    count = mask.sum().clamp(min=1) if denominator is None else denominator
    return torch.where(mask, x, 0.0).sum() / count


def kl_estimate(logprobs: torch.Tensor, ref_logprobs: torch.Tensor, *, estimator: KlEstimator) -> torch.Tensor:
    """Per-token estimates of KL(policy ‖ reference) from tokens the policy drew (Schulman 2020, "Approximating KL").

    With ``r = ref / policy``: k1 = -log r is unbiased and can be negative; k2 = (log r)² / 2 is biased and low in
    variance, and its gradient is unbiased; k3 = r - 1 - log r is unbiased and never negative.

    Args:
        logprobs: any shape, of the tokens drawn, under the policy.
        ref_logprobs: the same shape, under the reference.

    Returns:
        The same shape, in nats.
    """
    log_ratio = ref_logprobs - logprobs
    if estimator == "k1":
        return -log_ratio
    if estimator == "k2":
        return log_ratio.square() / 2
    if estimator == "k3":
        return (torch.expm1(log_ratio) - log_ratio).clamp(min=0)  # rounding alone can make it negative
    raise ValueError(f"estimator is {estimator!r}; it must be 'k1', 'k2' or 'k3'")


def ppo_policy_loss(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
    weights: torch.Tensor | None = None,
    denominator: float | torch.Tensor | None = None,
) -> tuple[torch.Tensor, Stats]:
    """The clipped surrogate, negated (Schulman et al. 2017, eq. 7), averaged over kept tokens.

    The ratio ``exp(logprobs - old_logprobs)`` is clipped to ``[1 - clip_low, 1 + clip_high]``; a higher upper bound
    lets unlikely tokens grow (Yu et al. 2025, DAPO, eq. 10). With ``dual_clip`` c > 1 the surrogate of a token with a
    negative advantage is at least ``c * advantage``, however large the ratio (Ye et al. 2020, eq. 5).

    Args:
        logprobs: (B, T) under the policy in training; carries the gradient.
        old_logprobs: (B, T) under the policy that the batch started from.
        advantages: (B, T).
        mask: (B, T) bool, True is keep.
        weights: (B, T) or None: importance weights of tokens that another engine drew, see ``importance_weights``.
        denominator: what the sum is divided by, instead of the number of kept tokens.

    Returns:
        ``(loss, stats)``: ``clip_fraction_low`` and ``clip_fraction_high`` (share of tokens whose gradient a bound
        stops), ``dual_clip_fraction``, ``approximate_kl`` (k3 of KL(old ‖ new)), ``ratio_mean``, ``ratio_max``,
        ``ratio_min``; all detached scalars over the kept tokens.
    """
    mask = mask.bool()
    terms = Terms(logprobs, old_logprobs, advantages, mask, weights)
    options = Options(clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)
    losses, figures = token_losses(OBJECTIVES["ppo"], terms, options)
    stats = {name: masked_mean(figure.float(), mask) for name, figure in figures.items()}
    return masked_mean(losses, mask, denominator), stats | ratio_stats(logprobs, old_logprobs, mask)


@torch.no_grad()
def ratio_stats(logprobs: torch.Tensor, old_logprobs: torch.Tensor, mask: torch.Tensor) -> Stats:
    """How far a policy has moved from ``old_logprobs`` (B, T), over the kept tokens: ``approximate_kl`` (k3 of KL(old ‖
    new)), ``ratio_mean``, ``ratio_max`` and ``ratio_min``; detached scalars."""
    mask = mask.bool()
    log_ratio = torch.where(mask, logprobs - old_logprobs, 0.0)
    ratio = log_ratio.exp()
    kept = ratio[mask] if mask.any() else ratio.new_ones(1)
    return {
        "approximate_kl": masked_mean(torch.expm1(log_ratio) - log_ratio, mask),
        "ratio_mean": kept.mean(),
        "ratio_max": kept.max(),
        "ratio_min": kept.min(),
    }


def ppo_value_loss(
    values: torch.Tensor,
    old_values: torch.Tensor,
    returns: torch.Tensor,
    mask: torch.Tensor,
    *,
    clip: float | None,
    denominator: float | torch.Tensor | None = None,
) -> tuple[torch.Tensor, Stats]:
    """Half the squared error of the values, clipped around the old ones, averaged over kept tokens.

    The larger of the plain and the clipped error counts (Schulman et al. 2017's code; Huang et al. 2024, detail 13),
    so a value gains nothing from moving further than ``clip`` from what it was; None turns clipping off.

    Args:
        values: (B, T) of the critic in training; carries the gradient.
        old_values: (B, T) when the batch was made.
        returns: (B, T) targets.
        mask: (B, T) bool, True is keep.
        denominator: what the sum is divided by, instead of the number of kept tokens.

    Returns:
        ``(loss, stats)``: ``value_clip_fraction`` (share of tokens where the clipped error is the larger one) and
        ``value_error`` (mean squared error); detached scalars.
    """
    mask = mask.bool()
    returns = torch.where(mask, returns, 0.0)
    values = torch.where(mask, values, 0.0)
    old_values = torch.where(mask, old_values, 0.0)
    plain = (values - returns).square()
    worst = plain
    if clip is not None:
        near = old_values + (values - old_values).clamp(-clip, clip)
        worst = torch.maximum(plain, (near - returns).square())
    loss = masked_mean(worst, mask, denominator) / 2
    with torch.no_grad():
        stats = {
            "value_clip_fraction": masked_mean((worst > plain).float(), mask),
            "value_error": masked_mean(plain, mask),
        }
    return loss, stats


@torch.no_grad()
def importance_weights(old_logprobs: torch.Tensor, sampling_logprobs: torch.Tensor, *, cap: float) -> torch.Tensor:
    """Truncated importance weights of tokens drawn by an engine that is not quite the policy (Yao et al. 2025).

    ``min(exp(old_logprobs - sampling_logprobs), cap)`` per token, where ``old_logprobs`` are the training model's own
    for the same weights: an engine with other kernels or another precision draws from a slightly other distribution.
    """
    return (old_logprobs - sampling_logprobs).exp().clamp(max=cap)
