"""What GRPO and RLOO learn from: answers whose rewards are compared with those of others to the same prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from alignment.distributed.workers import Team
from alignment.errors import StageError
from alignment.policy.advantages import (
    group_advantages,
    leave_one_out_advantages,
    normalised,
    reinforce_plus_plus_advantages,
    separately_normalised,
)
from alignment.policy.losses import kl_estimate
from alignment.policy.online.actor_critic import Actor, Reference
from alignment.policy.online.batch import Episode
from alignment.policy.online.off_policy import sampling_logprobs
from alignment.policy.online.passes import pass_over
from alignment.recipe.stages.grpo import GrpoStage, RlooStage


@dataclass(slots=True)
class GroupExperience:
    """A step's episodes, and what is known of each response token: (N, R) float32, 0 where ``mask`` is False.

    ``loss_mask`` leaves out what is not learned from, ``advantages`` (N, R) are what is. ``totals`` (N,) are what the
    rewards gave, ``lost`` (N,) what answers lost for their missing ends, in deviations of the rewards. Where a step has
    one update alone (``fresh``), the policy's log-probabilities and entropies are filled in by the pass that trains.
    """

    episodes: list[Episode]
    mask: torch.Tensor
    loss_mask: torch.Tensor
    logprobs: torch.Tensor
    ref_logprobs: torch.Tensor | None
    sampling_logprobs: torch.Tensor | None
    entropy: torch.Tensor
    advantages: torch.Tensor
    totals: torch.Tensor
    lost: torch.Tensor
    fresh: bool


def make_experience(
    episodes: list[Episode],
    totals: torch.Tensor,
    columns: Mapping[str, Sequence[float]],
    weights: Sequence[float],
    actor: Actor,
    reference: Reference | None,
    settings: GrpoStage | RlooStage,
    *,
    deviation: float,
    minibatches: Sequence[Sequence[int]],
    team: Team,
) -> GroupExperience:
    """Everything the update needs, from at most one pass of the policy and one of the reference.

    Args:
        totals: (N,) weighted sums of the rewards, answers to one prompt together.
        columns: each reward's own scores, and ``weights`` in their order.
        deviation: that of all totals so far, which a missing end is measured in.

    Raises:
        StageError: importance weights are wanted, and the engine does not say how likely its tokens were.
    """
    fresh = settings.trains_first()
    known = pass_over(
        episodes, actor, reference, minibatches, size=settings.batch_size, team=team, policy=not fresh
    )  # fmt: skip
    mask, device = known.mask, actor.device
    finished = torch.tensor([episode.completion.finished for episode in episodes], device=device)
    loss_mask = mask & finished[:, None] if settings.mask_truncated else mask
    totals = totals.to(device)
    if settings.redraws is not None:
        teaches = ~without_spread(totals, settings.per_prompt).repeat_interleave(settings.per_prompt)
        loss_mask = loss_mask & teaches[:, None]
    lost = -deviation * (~finished).float()
    if settings.kind == "rloo":
        kl = torch.where(loss_mask, kl_estimate(known.logprobs, known.ref_logprobs, estimator="k1"), 0.0).sum(dim=1)
        advantages = _rloo_advantages(totals + settings.missing_eos_penalty * lost, kl, settings)
    else:
        scores = torch.tensor(list(columns.values()), dtype=torch.float32, device=device)
        by_reward = torch.cat([scores, lost[None]]).T
        by_weight = torch.tensor([*weights, settings.missing_eos_penalty], device=device)
        advantages = _grpo_advantages(totals, by_reward, by_weight, mask, settings)
    if advantages.dim() == 1:
        advantages = advantages[:, None].expand(mask.shape)
    sampled = sampling_logprobs(episodes, mask)
    return GroupExperience(
        episodes, mask, loss_mask, known.logprobs, None if reference is None else known.ref_logprobs, sampled,
        known.entropy, torch.where(mask, advantages, 0.0), totals, lost, fresh,
    )  # fmt: skip


def _rloo_advantages(scores: torch.Tensor, kl: torch.Tensor, settings: RlooStage) -> torch.Tensor:
    """(N,) from scores (N,) with their penalties, and each answer's KL (N,) in nats (Ahmadian et al. 2024)."""
    if settings.clip_rewards is not None:
        scores = scores.clamp(*settings.clip_rewards)
    advantages = leave_one_out_advantages(scores - settings.beta * kl, group_size=settings.per_prompt)
    return normalised(advantages) if settings.normalize_advantages else advantages


def _grpo_advantages(
    totals: torch.Tensor, columns: torch.Tensor, weights: torch.Tensor, mask: torch.Tensor, settings: GrpoStage
) -> torch.Tensor:
    """(N,), or (N, R) of each token, from the rewards' sums (N,) and the rewards (N, K) with what ends cost."""
    size = settings.per_prompt
    if settings.advantages == "group" and settings.aggregation == "normalize_then_sum":
        kept = weights != 0  # a missing end that costs nothing is no reward
        return separately_normalised(columns[:, kept], weights[kept], group_size=size)
    shaped = totals + weights[-1] * columns[:, -1]
    if settings.advantages == "group":
        return group_advantages(shaped, group_size=size, scale=settings.scale_rewards)
    if settings.advantages == "leave_one_out":
        return leave_one_out_advantages(shaped, group_size=size)
    centred = group_advantages(shaped, group_size=size, scale="none")
    return reinforce_plus_plus_advantages(centred, torch.zeros_like(mask, dtype=torch.float32), mask, kl_coefficient=0)


def require_sampling_logprobs(experience: GroupExperience) -> torch.Tensor:
    """(N, R) how likely its tokens were to who drew them. Raises StageError where the engine does not say."""
    if experience.sampling_logprobs is None:
        raise StageError("importance_cap is set, but the engine does not say how likely its tokens were")
    return experience.sampling_logprobs


def group_spread(totals: torch.Tensor, group_size: int) -> torch.Tensor:
    """(N / G,) the sample's deviation of each group's rewards."""
    return totals.view(-1, group_size).std(dim=1)


def without_spread(totals: torch.Tensor, group_size: int) -> torch.Tensor:
    """(N / G,) bool: all answers to the prompt have one reward, so that nothing is learned from them."""
    spread = group_spread(totals, group_size)
    return torch.isclose(spread, torch.zeros_like(spread))
