"""How much better a token, or an answer, was than expected.

Free functions on tensors; no model. Masks are True for what counts. Nothing here carries a gradient: advantages and
returns are targets.
"""

from typing import Literal

import torch

EPSILON = 1e-8  # under the root of a variance
GROUP_EPSILON = 1e-4  # added to a group's standard deviation, as TRL does; a group of equals then has advantage 0


@torch.no_grad()
def generalized_advantage_estimation(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, *, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages and returns of every kept token (Schulman et al. 2015, eqs. 11 to 16).

    With ``t'`` the next *kept* token after ``t``, ``delta_t = r_t + gamma * V_t' - V_t`` and
    ``A_t = delta_t + gamma * lam * A_t'``; after the last kept token both are 0: an episode ends there. Tokens that
    the mask leaves out (padding, or a tool's output in the middle of an answer) are not steps: they neither discount
    nor end the trace, whatever they hold.

    Args:
        rewards: (B, T) float.
        values: (B, T) float, ``V(s_t)`` before token ``t`` was chosen.
        mask: (B, T) bool, True is keep.
        gamma: discount per kept token.
        lam: weight of longer estimates; 1 gives reward-to-go minus value, 0 the one-step error.

    Returns:
        ``(advantages, returns)``, each (B, T) float32 or wider, 0 where masked out; ``returns = advantages + values``.
    """
    dtype = torch.promote_types(torch.promote_types(rewards.dtype, values.dtype), torch.float32)
    rewards, values, mask = rewards.to(dtype), values.to(dtype), mask.bool()
    advantages = torch.zeros_like(values)
    trace = values.new_zeros(values.shape[0])
    next_value = values.new_zeros(values.shape[0])
    for t in reversed(range(values.shape[1])):
        keep = mask[:, t]
        step = rewards[:, t] + gamma * next_value - values[:, t] + gamma * lam * trace
        trace = torch.where(keep, step, trace)
        next_value = torch.where(keep, values[:, t], next_value)
        advantages[:, t] = torch.where(keep, step, 0.0)
    return advantages, torch.where(mask, advantages + values, 0.0)


@torch.no_grad()
def whiten(x: torch.Tensor, mask: torch.Tensor, *, shift_mean: bool = True) -> torch.Tensor:
    """Scales kept entries to unit variance, and to mean 0 where ``shift_mean``; the rest come back as 0.

    The variance is the population's (divided by n), as in Ziegler et al. 2019 and Huang et al. 2024; without
    ``shift_mean`` the mean is added back unscaled, as theirs is.

    Args:
        x: float, any shape.
        mask: bool, the same shape.
    """
    mask = mask.bool()
    kept = x[mask]
    if kept.numel() == 0:
        return torch.zeros_like(x)
    variance, mean = torch.var_mean(kept, correction=0)
    whitened = (x - mean) * torch.rsqrt(variance + EPSILON)
    return torch.where(mask, whitened if shift_mean else whitened + mean, 0.0)


@torch.no_grad()
def whiten_by_answer(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Scales kept entries to a mean square of 1 about the mean over answers; the rest come back as 0.

    What is subtracted is the mean over answers of each one's own mean: an answer's length gives it no more weight in
    it. Where long answers score lower, the mean over tokens lies below the mean over answers, and less it every answer
    would seem better than expected at the tokens that all answers have: the first and the last.

    Args:
        x: (B, T) float, a row for each answer.
        mask: (B, T) bool, True is keep.
    """
    mask = mask.bool()
    counts = mask.sum(dim=1)
    answers = counts > 0
    if not answers.any():
        return torch.zeros_like(x)
    means = torch.where(mask, x, 0.0).sum(dim=1)[answers] / counts[answers]
    centred = torch.where(mask, x - means.mean(), 0.0)
    return centred * torch.rsqrt(centred.square().sum() / counts.sum() + EPSILON)


@torch.no_grad()
def unit_variance(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Divides kept entries by their deviation (the population's); 0 stays 0, and so do entries that are masked out.

    For rewards of tokens, most of which are 0. ``whiten`` with ``shift_mean=False`` turns each 0 into a constant, which
    is a reward for length.
    """
    mask = mask.bool()
    if not mask.any():
        return torch.zeros_like(x)
    return torch.where(mask, x * torch.rsqrt(x[mask].var(correction=0) + EPSILON), 0.0)


@torch.no_grad()
def group_advantages(
    rewards: torch.Tensor, *, group_size: int, scale: Literal["group", "batch", "none"]
) -> torch.Tensor:
    """An answer's reward minus its group's mean, divided by a standard deviation (Shao et al. 2024, section 4.1.2).

    Args:
        rewards: (N,) float, groups one after another, ``N`` a multiple of ``group_size``.
        group_size: answers per prompt, G.
        scale: "group" divides by each group's own deviation (GRPO), "batch" by that of all rewards, "none" by nothing
            (Dr. GRPO, Liu et al. 2025: no bias towards questions that are too easy or too hard).

    Returns:
        (N,) float. Deviations are the sample's (divided by n - 1), with ``GROUP_EPSILON`` added, as TRL has them.

    Raises:
        ValueError: the rewards are not whole groups, or ``scale`` is unknown.
    """
    if rewards.dim() != 1 or group_size < 1 or rewards.numel() % group_size:
        raise ValueError(f"rewards of shape {tuple(rewards.shape)} are not whole groups of {group_size}")
    groups = rewards.view(-1, group_size)
    centred = (groups - groups.mean(dim=1, keepdim=True)).view(-1)
    if scale == "none":
        return centred
    if scale == "group":
        deviation = _deviation(groups, dim=1).repeat_interleave(group_size)
    elif scale == "batch":
        deviation = _deviation(rewards, dim=0)
    else:
        raise ValueError(f"scale is {scale!r}; it must be 'group', 'batch' or 'none'")
    return centred / (deviation + GROUP_EPSILON)


@torch.no_grad()
def separately_normalised(rewards: torch.Tensor, weights: torch.Tensor, *, group_size: int) -> torch.Tensor:
    """Several rewards, each normalised within its group before they are summed, and the sum over the batch (GDPO).

    A reward of large spread then does not hide one of small spread.

    Args:
        rewards: (N, K) of K rewards, groups one after another.
        weights: (K,) of the sum.

    Returns:
        (N,) of mean 0 and deviation 1 over all answers.
    """
    columns = [group_advantages(column, group_size=group_size, scale="group") for column in rewards.unbind(1)]
    total = (torch.stack(columns, dim=1) * weights).sum(dim=1)
    return normalised(total)


@torch.no_grad()
def normalised(x: torch.Tensor) -> torch.Tensor:
    """(N,) less its mean, over the sample's deviation with ``GROUP_EPSILON`` added."""
    return (x - x.mean()) / (_deviation(x, dim=0) + GROUP_EPSILON)


@torch.no_grad()
def leave_one_out_advantages(rewards: torch.Tensor, *, group_size: int) -> torch.Tensor:
    """An answer's reward minus the mean of its group's others (Kool et al. 2019, eq. 4; Ahmadian et al. 2024, RLOO).

    Args:
        rewards: (N,) float, groups one after another.
        group_size: answers per prompt, at least 2.

    Raises:
        ValueError: the rewards are not whole groups of at least two.
    """
    if rewards.dim() != 1 or group_size < 2 or rewards.numel() % group_size:
        raise ValueError(f"rewards of shape {tuple(rewards.shape)} are not whole groups of {group_size}, at least 2")
    groups = rewards.view(-1, group_size)
    others = (groups.sum(dim=1, keepdim=True) - groups) / (group_size - 1)
    return (groups - others).view(-1)


@torch.no_grad()
def reinforce_plus_plus_advantages(
    rewards: torch.Tensor, kl: torch.Tensor, mask: torch.Tensor, *, kl_coefficient: float
) -> torch.Tensor:
    """REINFORCE++ (Hu et al. 2025, section 3): a token's advantage is what is still to come, normalised over the batch.

    What comes is the answer's reward at its end, less the KL of each token from here on; no discount, no critic. With
    rewards less their group's mean this is the paper's variant with a baseline.

    Args:
        rewards: (N,) float, of whole answers.
        kl: (N, T) estimates of each token's KL from the reference, in nats.
        mask: (N, T) bool, True is keep.

    Returns:
        (N, T) of mean 0 and variance 1 over the kept tokens, 0 elsewhere.
    """
    mask = mask.bool()
    costs = torch.where(mask, kl_coefficient * kl, 0.0)
    to_come = costs.flip(1).cumsum(1).flip(1)
    return whiten(torch.where(mask, rewards[:, None] - to_come, 0.0), mask)


def _deviation(x: torch.Tensor, *, dim: int) -> torch.Tensor:
    """The sample's standard deviation; 0 for a single value, where the sample says nothing about spread."""
    return x.std(dim=dim) if x.shape[dim] > 1 else x.new_zeros(x.shape[:dim])
