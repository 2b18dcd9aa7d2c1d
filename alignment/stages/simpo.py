"""Simple preference optimisation (Meng et al. 2024): preference pairs without a reference, normalised by length."""

from functools import partial

from alignment.recipe.stages.preference.reference_free import SimpoStage
from alignment.stage import StageContext, StageResult
from alignment.training.preference.reference_free import PairObjective, simpo_loss
from alignment.training.preference.reference_free_training import train_without_reference


def run(settings: SimpoStage, context: StageContext) -> StageResult:
    """Trains ``settings.model`` on preference pairs. Raises StageError where no pair is to learn from."""
    objective = PairObjective(partial(simpo_loss, beta=settings.beta, gamma=settings.gamma))
    return train_without_reference(settings, context, objective, beta=settings.beta)
