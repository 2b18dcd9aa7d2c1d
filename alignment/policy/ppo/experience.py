"""Making PPO's experience: what a step's answers are rewarded by, token for token, and what follows from it."""

from collections.abc import Hashable, Sequence

import torch

from alignment.distributed.workers import ALONE, Team
from alignment.errors import StageError
from alignment.policy.advantages import generalized_advantage_estimation, unit_variance, whiten_by_answer
from alignment.policy.losses import kl_estimate
from alignment.policy.online.actor_critic import ActorCritic, Reference
from alignment.policy.online.batch import Episode, Experience
from alignment.policy.online.off_policy import correction, sampling_logprobs
from alignment.policy.online.passes import pass_over
from alignment.policy.online.score_scale import ScoreScale
from alignment.recipe.stages.ppo import PpoStage


@torch.no_grad()
def make_experience(
    episodes: list[Episode],
    scores: torch.Tensor,
    actor: ActorCritic,
    reference: Reference,
    settings: PpoStage,
    *,
    kl_coefficient: float,
    team: Team = ALONE,
    scale: ScoreScale | None = None,
    minibatches: Sequence[Sequence[int]] | None = None,
    other_engine: bool = False,
) -> Experience:
    """Everything the update needs, from one pass of the policy (with its values) and one of the reference.

    Each worker of ``team`` makes the passes for some of the episodes; what comes of all of them, whitening included,
    is then the same in every worker.

    Reward of a token (Ouyang et al. 2022, eq. 2; Stiennon et al. 2020): minus the coefficient times its estimated KL,
    and on the answer's last real token the score. Where ``settings.kl_in`` is "loss", the score alone.

    ``scores`` (N,) are the reward's; with ``scale`` they are learned from in its units, less its mean. ``minibatches``
    are the update's, None one of all episodes: what is passed over together there is so here. ``other_engine``: not one
    of ours drew the answers.
    """
    whole = [range(len(episodes))]
    known = pass_over(episodes, actor, reference, minibatches or whole, size=settings.batch_size, team=team)
    mask, logprobs, values = known.mask, known.logprobs, known.values
    penalised, credited = (tensor.to(actor.device) for tensor in credit(episodes, scores, settings, scale))
    in_reward = kl_coefficient if settings.kl_in == "reward" else 0.0
    kl = kl_estimate(logprobs, known.ref_logprobs, estimator=settings.kl_estimator)
    rewards = token_rewards(credited, kl, mask, in_reward)
    if settings.whiten_rewards:
        rewards = unit_variance(rewards, mask)
    advantages, returns = generalized_advantage_estimation(
        rewards, values, mask, gamma=settings.gamma, lam=settings.lam
    )
    if settings.whiten_advantages:
        advantages = whiten_by_answer(advantages, mask)
    sampled = sampling_logprobs(episodes, mask)
    weights = None
    if (cap := settings.weights_cap(other_engine=other_engine)) is not None:
        if sampled is None:
            raise StageError("importance_cap is set, but the engine does not say how likely its tokens were")
        weights = correction(logprobs, sampled, mask, settings, cap)
    experience = Experience(
        episodes, penalised, mask, logprobs, known.ref_logprobs, sampled, values, known.entropy, advantages, returns,
        raw_scores=scores.to(actor.device), weights=weights, kl_loss_coefficient=kl_coefficient - in_reward,
    )  # fmt: skip
    if scale is not None:
        experience.score_mean, experience.score_unit = scale.mean, scale.deviation
    return experience


def credit(
    episodes: Sequence[Episode], scores: torch.Tensor, settings: PpoStage, scale: ScoreScale | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the reward's ``scores`` (N,) are learned as: in the units of ``scale``, less the penalty for a missing end;
    and what the last token of each answer is rewarded by: that, less the prompt's baseline where there is one."""
    scores = scores if scale is None else scale.normalised(scores)
    cut = torch.tensor([not episode.completion.finished for episode in episodes], device=scores.device)
    penalised = scores - settings.missing_eos_penalty * cut
    if settings.baseline == "none":
        return penalised, penalised
    return penalised, beyond_others(penalised, [episode.prompt_ids for episode in episodes])


def beyond_others(scores: torch.Tensor, prompts: Sequence[Hashable]) -> torch.Tensor:
    """Scores (B,) minus the mean score of the other answers to each one's prompt (Kool et al. 2019, eq. 4).

    The answer's own score is not in its baseline, which therefore does not bias the gradient. An answer without
    others keeps its score.
    """
    same = torch.tensor([[one == other for other in prompts] for one in prompts], device=scores.device)
    others = same & ~torch.eye(len(prompts), dtype=torch.bool, device=scores.device)
    return scores - (others * scores).sum(dim=1) / others.sum(dim=1).clamp(min=1)


def token_rewards(scores: torch.Tensor, kl: torch.Tensor, mask: torch.Tensor, kl_coefficient: float) -> torch.Tensor:
    """(B, R) rewards from scores (B,), per-token KL (B, R) and a right-padding mask (B, R)."""
    rewards = torch.where(mask, -kl_coefficient * kl, 0.0)
    last = mask.sum(dim=1, keepdim=True) - 1
    return rewards.scatter_add(1, last, scores[:, None].to(rewards.dtype))
