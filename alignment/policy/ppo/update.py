"""Learning from experience: epochs of minibatches, each one optimizer step.

A minibatch's loss is the mean over all of its tokens, however it is split for memory: each piece's loss is its sum
over the whole minibatch's count. Long answers thus weigh by their tokens, and the gradient does not depend on
``batch_size``.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch

from alignment.distributed.workers import ALONE, Team
from alignment.errors import StageError
from alignment.models.cpu_attention import quick_backward
from alignment.policy.losses import kl_estimate, masked_mean, ppo_policy_loss, ppo_value_loss
from alignment.policy.ppo.actor_critic import ActorCritic
from alignment.policy.ppo.batch import Experience, collate, dealt, split_minibatches
from alignment.policy.ppo.master_adamw import MasterAdamW
from alignment.recipe.stages.ppo import PpoStage
from alignment.rollouts.seeds import derived_seed

EXTREMES: Mapping[str, Callable[[Iterable[float]], float]] = {"ratio_max": max, "ratio_min": min}  # others add up


@dataclass(slots=True)
class Update:
    """What the passes over one step's experience did. ``metrics`` are means over its optimizer steps."""

    metrics: dict[str, float] = field(default_factory=dict)
    first: dict[str, float] = field(default_factory=dict)  # of the very first minibatch, before any change
    optimizer_steps: int = 0
    tokens: int = 0


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
    if settings.gradient_checkpointing:
        actor.checkpoint_activations()
    result = Update()
    sums: dict[str, float] = defaultdict(float)
    minibatches = minibatches_of(settings, seed=seed, step=step)
    for epoch in range(settings.epochs):
        generator = torch.Generator().manual_seed(derived_seed(seed, "order of minibatches", step, epoch))
        for place in torch.randperm(len(minibatches), generator=generator).tolist():
            stats = _minibatch(minibatches[place], experience, actor, optimizer, settings, team)
            result.first = result.first or stats
            limit = settings.max_approximate_kl
            if limit is not None and stats["approximate_kl"] > limit:
                optimizer.clear()  # the policy has already moved further than asked: leave it there
                sums["stopped_early"] += 1
                break
            if team.workers > 1 and not actor.sharded:  # there the backward passes have added them up
                team.add(optimizer.gradients())
            stats["gradient_norm"] = optimizer.step()
            if not stats["gradient_norm"] < float("inf"):
                raise StageError(
                    f"step {step}: the gradient is {stats['gradient_norm']}; lower learning_rate "
                    f"({settings.learning_rate:g}) or look at the scores of that step"
                )
            result.optimizer_steps += 1
            result.tokens += int(stats.pop("tokens"))
            for name, value in stats.items():
                sums[name] += value
        else:
            continue
        break
    stopped = sums.pop("stopped_early", 0.0)
    result.metrics = {name: value / max(1, result.optimizer_steps) for name, value in sums.items()}
    result.metrics["stopped_early"] = stopped
    return result


def minibatches_of(settings: PpoStage, *, seed: int, step: int) -> list[list[int]]:
    """A step's minibatches, which depend on the seed and the step alone."""
    return split_minibatches(settings.episodes, settings.minibatches, derived_seed(seed, "minibatches", step))


def _minibatch(
    indices: list[int],
    experience: Experience,
    actor: ActorCritic,
    optimizer: MasterAdamW,
    settings: PpoStage,
    team: Team,
) -> dict[str, float]:
    """Adds up this worker's part of a minibatch's gradient; returns the whole's statistics, means over its tokens."""
    count = experience.mask[indices].sum()
    done: list[dict[str, torch.Tensor | float]] = []
    own, idle = dealt(indices, experience.episodes, settings.batch_size, team, alike=actor.sharded)
    for rows in own + idle:
        idles = len(done) == len(own)
        with quick_backward(*actor.trunks()):
            loss, piece = piece_loss(rows, experience, actor, settings, count)
            (loss * 0 if idles else loss).backward()  # type: ignore[no-untyped-call]
        optimizer.accumulate()
        if not idles:
            done.append({**piece, "tokens": sum(experience.episodes[row].length for row in rows)})
    pieces = team.gather([{name: float(value) for name, value in piece.items()} for piece in done])
    return {name: EXTREMES.get(name, sum)([piece[name] for piece in pieces]) for name in pieces[0]}


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
