"""TODO: alignment/recipe/stages/tournament.py"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from alignment.recipe.base import Count, Name, Settings, SimulatedRaters
from alignment.recipe.judges import JudgeSettings
from alignment.recipe.stages.evaluate import Part, _check_calibration
from alignment.records import Sampling


class TournamentStage(Settings):
    """Every policy against every other on held-out prompts; its output is the best of them, a model like any other.

    The best is the one with the highest win rate against ``model``, from which all started. Best-of-n from ``model``
    plays along as the baseline that needs no training; it is no model, so it cannot be the output.
    """

    kind: Literal["tournament"]
    policies: tuple[Name, ...] = Field(min_length=2)
    model: Name
    raters: SimulatedRaters | None = None
    judge: JudgeSettings | None = None  # an AI judge in the raters' place
    calibrated_by: Name | None = None  # a stage of kind judge with the very same judge; None: uncalibrated
    reward: Name | None = None  # chooses among the answers of best-of-n
    best_of: Count = 1  # candidates for each answer of best-of-n; 1: it does not play
    sampling: Sampling = Sampling(temperature=0.0, max_new_tokens=128)
    best_of_temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    kl_prompts: Count = 16  # KL from `model` needs samples at temperature 1 of its own
    batch_size: Count = 64
    limit: Count | None = None  # held-out prompts
    part: Part = "first half"
    workers: Count | None = None  # None: as many as `resources.workers`; what they find is the same

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.best_of > 1) != (self.reward is not None):
            raise ValueError("best_of above 1 needs a reward that chooses, and a reward chooses only among best_of")
        if (self.raters is None) == (self.judge is None):
            raise ValueError("name raters or a judge: who compares")
        _check_calibration(self.judge, self.calibrated_by)
        return self
