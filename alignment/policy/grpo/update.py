"""The update of GRPO and RLOO: a loss of the table, the KL to the reference, and an entropy bonus."""

from collections.abc import Callable

import torch

from alignment.distributed.workers import Team
from alignment.policy.grpo.experience import GroupExperience, require_sampling_logprobs
from alignment.policy.losses import kl_estimate, ratio_stats
from alignment.policy.objectives.aggregation import aggregation_weights
from alignment.policy.objectives.table import OBJECTIVES, token_losses
from alignment.policy.objectives.terms import Options, Terms, TokenStats, log_ratio
from alignment.policy.online.actor_critic import Actor
from alignment.policy.online.batch import collate
from alignment.policy.online.master_adamw import MasterAdamW
from alignment.policy.online.off_policy import correction
from alignment.policy.online.update import EXTREMES, PieceLoss, Update, train_on
from alignment.recipe.stages.grpo import GrpoStage, RlooStage

Stats = dict[str, torch.Tensor]


def consecutive(settings: GrpoStage | RlooStage) -> list[list[int]]:
    """A step's minibatches: prompt after prompt, the answers to each together, as they are compared and computed."""
    size = settings.episodes // settings.minibatches
    return [list(range(start, start + size)) for start in range(0, settings.episodes, size)]


def update(
    experience: GroupExperience,
    actor: Actor,
    optimizer: MasterAdamW,
    settings: GrpoStage | RlooStage,
    *,
    cap: float | None,
    step: int,
    team: Team,
    before_step: Callable[[], None] | None = None,
) -> Update:
    """Trains ``actor`` on one step's experience; ``cap`` is that of importance weights, None for none.

    Raises StageError for a gradient that is not finite.
    """

    def loss_of(indices: list[int]) -> PieceLoss:
        return GroupLoss(indices, experience, actor, settings, cap)

    return train_on(
        experience.episodes, actor, optimizer, settings, loss_of, minibatches=consecutive(settings),
        order=lambda _epoch: range(settings.minibatches), step=step, team=team, before_step=before_step,
    )  # fmt: skip


class GroupLoss:
    """The loss of a minibatch's pieces, each a share of the whole's."""

    def __init__(
        self,
        indices: list[int],
        experience: GroupExperience,
        actor: Actor,
        settings: GrpoStage | RlooStage,
        cap: float | None,
    ) -> None:
        self.experience, self.actor, self.settings, self.cap = experience, actor, settings, cap
        self.objective = OBJECTIVES[settings.loss_used()]
        low, high = settings.clips_used()
        self.options = Options(low, high, level=settings.level_used())
        self.entropy_weight = settings.entropy_weight()
        if settings.kind == "grpo":
            self.options = Options(low, high, settings.delta, settings.level_used(), settings.sapo_temperatures)
        mask = experience.loss_mask
        self.learned = _most_uncertain(experience, indices, settings)
        counts = aggregation_weights(
            mask[indices], self.objective.aggregation, step_tokens=mask.sum() / settings.minibatches,
            longest=settings.longest_answer() or 1,
        )  # fmt: skip
        self.counts = torch.zeros(mask.shape, device=mask.device)
        self.counts[indices] = counts
        self.tokens, self.rows = mask[indices].sum().clamp(min=1), len(indices)
        self.learns = bool(mask[indices].any())
        self.learned_tokens = self.learned[indices].sum().clamp(min=1)

    def __call__(self, rows: list[int], idle: bool) -> tuple[torch.Tensor, Stats]:
        """The loss of some rows as a share of the minibatch's, and its statistics, shares as well."""
        experience, settings = self.experience, self.settings
        batch = collate([experience.episodes[row] for row in rows], experience.mask.device)
        outputs, width = self.actor(batch), batch.labels.shape[1]
        if experience.fresh and not idle:
            experience.logprobs[rows, :width] = outputs.logprobs.detach()
            experience.entropy[rows, :width] = outputs.entropy.detach()
        old = outputs.logprobs.detach() if experience.fresh else experience.logprobs[rows, :width]
        mask, learned = (part[rows, :width] for part in (experience.loss_mask, self.learned))
        weights = None
        if self.cap is not None:
            sampled = require_sampling_logprobs(experience)[rows, :width]
            weights = correction(old, sampled, batch.mask, settings, self.cap)
        terms = Terms(outputs.logprobs, old, experience.advantages[rows, :width], mask, weights)
        losses, figures = token_losses(self.objective, terms, self.options)
        losses = torch.where(learned, losses, 0.0)
        if settings.kind == "grpo" and experience.ref_logprobs is not None:
            kl = kl_estimate(outputs.logprobs, experience.ref_logprobs[rows, :width], estimator="k3")
            # Times the ratio, whose gradient makes it that of KL(policy ‖ reference) (DeepSeek-V3.2; TRL's default).
            losses = losses + settings.beta * torch.where(mask, kl * log_ratio(terms, self.options.level).exp(), 0.0)
        loss = (self.counts[rows, :width] * losses).sum()
        if self.entropy_weight:
            entropy = torch.where(learned, outputs.entropy, 0.0).sum() / self.learned_tokens
            loss = loss - self.entropy_weight * entropy
        return loss, {"loss": loss.detach()} | self._stats(figures, terms)

    @torch.no_grad()
    def _stats(self, figures: TokenStats, terms: Terms) -> Stats:
        shares: Stats = {}
        for name, figure in figures.items():
            shares[name] = torch.where(terms.mask, figure.float(), 0.0).sum() / self.tokens
        if "clip_fraction_low" in shares:
            shares["clip_fraction"] = shares["clip_fraction_low"] + shares["clip_fraction_high"]
        # Where every answer of a minibatch is left out there is no token to average over, and each row has its share.
        share = terms.mask.sum() / self.tokens if self.learns else torch.tensor(len(terms.mask) / self.rows)
        for name, value in ratio_stats(terms.logprobs, terms.old_logprobs, terms.mask).items():
            shares[name] = value if name in EXTREMES else value * share
        return shares


def _most_uncertain(experience: GroupExperience, indices: list[int], settings: GrpoStage | RlooStage) -> torch.Tensor:
    """(N, R) the tokens of a minibatch that are learned from: all, or those of the highest entropy before the update
    (Wang et al. 2025, "Beyond the 80/20 rule")."""
    mask = experience.loss_mask
    if settings.kind == "rloo" or settings.top_entropy == 1 or not mask[indices].any():
        return mask
    known = experience.entropy[indices][mask[indices]].float()
    return mask & (experience.entropy >= torch.quantile(known, 1 - settings.top_entropy))
