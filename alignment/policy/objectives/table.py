"""Every loss by its name: what a token's is, how tokens are averaged, and what its ratio is of.

A new one is a function from :class:`~alignment.policy.objectives.terms.Terms` to the loss of each token, a row here,
and its name and published range in :mod:`alignment.recipe.stages.grpo`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from alignment.policy.objectives.aggregation import Aggregation
from alignment.policy.objectives.cispo import cispo
from alignment.policy.objectives.clipped import clipped
from alignment.policy.objectives.soft import sapo, vespo
from alignment.policy.objectives.terms import Options, Terms, TokenLoss, TokenStats


@dataclass(frozen=True, slots=True)
class Objective:
    """A loss. ``weighs`` says that it takes importance weights into its own ratio."""

    token_loss: TokenLoss
    aggregation: Aggregation
    weighs: bool = False


OBJECTIVES: Mapping[str, Objective] = {
    "ppo": Objective(clipped, "tokens"),
    "grpo": Objective(clipped, "answers"),
    "gspo": Objective(clipped, "answers"),
    "bnpo": Objective(clipped, "tokens"),
    "dr_grpo": Objective(clipped, "longest"),
    "dapo": Objective(clipped, "step_tokens"),
    "luspo": Objective(clipped, "answer_sums"),
    "cispo": Objective(cispo, "step_tokens"),
    "sapo": Objective(sapo, "answers"),
    "vespo": Objective(vespo, "step_tokens", weighs=True),
    "rloo": Objective(clipped, "answers"),
}


def token_losses(objective: Objective, terms: Terms, options: Options) -> tuple[torch.Tensor, TokenStats]:
    """(B, T) the loss of each token, importance weights included and 0 where masked out; and its figures."""
    losses, stats = objective.token_loss(terms, options)
    if terms.weights is not None and not objective.weighs:
        losses = losses * torch.where(terms.mask, terms.weights, 0.0)
    return torch.where(terms.mask, losses, 0.0), stats
