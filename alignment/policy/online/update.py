"""Learning from a step's answers: epochs of minibatches, each one optimizer step.

A minibatch's loss is a sum over its answers, however it is split for memory and over workers: each piece's loss is its
share of the whole. So the gradient does not depend on ``batch_size``.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch

from alignment.distributed.workers import ALONE, Team
from alignment.errors import StageError
from alignment.models.cpu_attention import quick_backward
from alignment.policy.online.actor_critic import Actor
from alignment.policy.online.batch import Episode, dealt
from alignment.policy.online.master_adamw import MasterAdamW
from alignment.recipe.stages.online import OnlineStage

EXTREMES: Mapping[str, Callable[[Iterable[float]], float]] = {"ratio_max": max, "ratio_min": min}  # others add up
PieceLoss: TypeAlias = Callable[[list[int], bool], tuple[torch.Tensor, dict[str, torch.Tensor]]]
"""The loss of some rows, as a share of their minibatch's, and its statistics, shares as well. Told with the rows
whether they are passed over for other workers' sake alone: nothing may come of those."""
MinibatchLoss: TypeAlias = Callable[[list[int]], PieceLoss]
"""The losses of a minibatch's pieces, given which rows it is of."""


@dataclass(slots=True)
class Update:
    """What the passes over one step's experience did. ``metrics`` are means over its optimizer steps."""

    metrics: dict[str, float] = field(default_factory=dict)
    first: dict[str, float] = field(default_factory=dict)  # of the very first minibatch, before any change
    optimizer_steps: int = 0
    tokens: int = 0


def train_on(
    episodes: Sequence[Episode],
    actor: Actor,
    optimizer: MasterAdamW,
    settings: OnlineStage,
    loss_of: MinibatchLoss,
    *,
    minibatches: list[list[int]],
    order: Callable[[int], Sequence[int]],
    step: int,
    team: Team = ALONE,
    max_approximate_kl: float | None = None,
    before_step: Callable[[], None] | None = None,
) -> Update:
    """Trains ``actor`` on the ``minibatches`` of a step's episodes, each worker of ``team`` on some rows of each.

    Args:
        order: in which order an epoch takes the minibatches.
        max_approximate_kl: ends the passes, before the optimizer step that would follow, once the policy is this far
            from where the step began.
        before_step: called before each optimizer step, once all workers' gradients are there; it may raise.

    Raises StageError for a gradient that is not finite.
    """
    if settings.gradient_checkpointing:
        actor.checkpoint_activations()
    result = Update()
    sums: dict[str, float] = defaultdict(float)
    for place in [place for epoch in range(settings.epochs) for place in order(epoch)]:
        indices = minibatches[place]
        stats = _minibatch(indices, episodes, actor, optimizer, settings.batch_size, loss_of(indices), team)
        result.first = result.first or stats
        if max_approximate_kl is not None and stats["approximate_kl"] > max_approximate_kl:
            optimizer.clear()  # the policy has already moved further than asked: leave it there
            sums["stopped_early"] += 1
            break
        if team.workers > 1 and not actor.sharded:  # there the backward passes have added them up
            team.add(optimizer.gradients())
        if before_step is not None:
            before_step()
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
    stopped = sums.pop("stopped_early", 0.0)
    result.metrics = {name: value / max(1, result.optimizer_steps) for name, value in sums.items()}
    result.metrics["stopped_early"] = stopped
    return result


def _minibatch(
    indices: list[int],
    episodes: Sequence[Episode],
    actor: Actor,
    optimizer: MasterAdamW,
    size: int,
    loss_of: PieceLoss,
    team: Team,
) -> dict[str, float]:
    """Adds up this worker's part of a minibatch's gradient; returns the whole's statistics, sums over its pieces."""
    done: list[dict[str, torch.Tensor | float]] = []
    own, idle = dealt(indices, episodes, size, team, alike=actor.sharded)
    for rows in own + idle:
        idles = len(done) == len(own)
        with quick_backward(*actor.trunks()):
            loss, piece = loss_of(rows, idles)
            (loss * 0 if idles else loss).backward()  # type: ignore[no-untyped-call]
        optimizer.accumulate()
        if not idles:
            done.append({**piece, "tokens": sum(episodes[row].length for row in rows)})
    pieces = team.gather([{name: float(value) for name, value in piece.items()} for piece in done])
    return {name: EXTREMES.get(name, sum)([piece[name] for piece in pieces]) for name in pieces[0]}
