"""Odds ratio preference optimisation (Hong et al. 2024): SFT on chosen answers, their odds above the others'."""

from alignment.recipe.stages.preference.reference_free import OrpoStage
from alignment.stage import StageContext, StageResult
from alignment.training.preference.reference_free import PairObjective, odds_ratio_loss
from alignment.training.preference.reference_free_training import train_without_reference


def run(settings: OrpoStage, context: StageContext) -> StageResult:
    """Trains ``settings.model`` on preference pairs. Raises StageError where no pair is to learn from."""
    objective = PairObjective(odds_ratio_loss, pair_weight=settings.beta, nll_weight=1.0)
    return train_without_reference(settings, context, objective, beta=settings.beta)
