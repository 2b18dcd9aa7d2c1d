"""PPO's update: the clipped surrogate and the value loss, each a mean over a minibatch's tokens."""

import torch

from alignment.distributed.workers import ALONE, Team
from alignment.policy.losses import kl_estimate, masked_mean, ppo_policy_loss, ppo_value_loss
from alignment.policy.online.actor_critic import ActorCritic
from alignment.policy.online.batch import Experience, collate, split_minibatches
from alignment.policy.online.master_adamw import MasterAdamW
from alignment.policy.online.update import EXTREMES, PieceLoss, Update, train_on
from alignment.recipe.stages.ppo import PpoStage
from alignment.rollouts.seeds import derived_seed


def update(
    experience: Experience,
    actor: ActorCritic,
    optimizer: MasterAdamW,
    settings: PpoStage,
    *,
    seed: int,
    step: int,
    team: Team = ALONE,
) -> Update:
    """Trains ``actor`` on one step's experience, each worker of ``team`` on some rows of each minibatch.

    Raises StageError for a gradient that is not finite.
    """
    minibatches = minibatches_of(settings, seed=seed, step=step)

    def order(epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(derived_seed(seed, "order of minibatches", step, epoch))
        return torch.randperm(len(minibatches), generator=generator).tolist()

    def loss_of(indices: list[int]) -> PieceLoss:
        count = experience.mask[indices].sum()
        return lambda rows, _idle: piece_loss(rows, experience, actor, settings, count)

    return train_on(
        experience.episodes, actor, optimizer, settings, loss_of, minibatches=minibatches, order=order, step=step,
        team=team, max_approximate_kl=settings.max_approximate_kl,
    )  # fmt: skip


def minibatches_of(settings: PpoStage, *, seed: int, step: int) -> list[list[int]]:
    """A step's minibatches, which depend on the seed and the step alone."""
    return split_minibatches(settings.episodes, settings.minibatches, derived_seed(seed, "minibatches", step))


def piece_loss(
    rows: list[int], experience: Experience, actor: ActorCritic, settings: PpoStage, count: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss of some rows, as a share of a minibatch of ``count`` tokens, and its statistics, shares as well."""
    batch = collate([experience.episodes[row] for row in rows], experience.mask.device)
    width, share = batch.labels.shape[1], batch.mask.sum() / count
    outputs = actor(batch)

    def old(tensor: torch.Tensor) -> torch.Tensor:
        return tensor[rows, :width]

    policy_loss, policy_stats = ppo_policy_loss(
        outputs.logprobs,
        old(experience.logprobs),
        old(experience.advantages),
        batch.mask,
        clip_low=settings.clip_low,
        clip_high=settings.clip_high,
        dual_clip=settings.dual_clip,
        weights=None if experience.weights is None else old(experience.weights),
        denominator=count,
    )
    value_loss, value_stats = ppo_value_loss(
        outputs.values,
        old(experience.values),
        old(experience.returns),
        batch.mask,
        clip=settings.value_clip,
        denominator=count,
    )
    loss = policy_loss + settings.value_coefficient * value_loss
    stats = {"policy_loss": policy_loss.detach(), "value_loss": value_loss.detach()}
    if settings.kl_in == "loss":
        kl = kl_estimate(outputs.logprobs, old(experience.ref_logprobs), estimator=settings.kl_estimator)
        kl_loss = experience.kl_loss_coefficient * masked_mean(kl, batch.mask, count)
        loss, stats["kl_loss"] = loss + kl_loss, kl_loss.detach()
    for name, value in (policy_stats | value_stats).items():
        stats[name] = value if name in EXTREMES else value * share
    return loss, stats
