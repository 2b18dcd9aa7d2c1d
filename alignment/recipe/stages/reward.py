"""The settings of the reward model."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from alignment.recipe.base import BASE, Name, NotNegative, Positive
from alignment.recipe.stages.scoring import ScoreModelStage
from alignment.recipe.stages.spec import StageSpec


class RewardStage(ScoreModelStage):
    """A Bradley–Terry reward model (Ouyang et al. 2022, eq. 1; margins as in Touvron et al. 2023, eq. 2)."""

    spec: ClassVar[StageSpec] = StageSpec(
        run="alignment.stages.reward",
        makes=("reward_model",),
        reads={"model": "policy", "preferences": "preferences"},
        sharing="batches",
        headline=("accuracy",),
    )
    kind: Literal["reward"]
    """A reward model."""
    model: Name = BASE
    """The model whose trunk it starts from: a stage, or `base`; not with `encoder`."""
    preferences: Name
    """The stage that makes the preference pairs."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    """Seed of its weights and of the order of its pairs; models of an `ensemble` need one each. null: the recipe's."""
    learning_rate: Positive = 1e-4
    """Peak learning rate. 1e-4, for LoRA: ten times the 1e-5 of Touvron et al. 2023."""
    use_margin: bool = False
    """Subtract each pair's margin in the loss (Touvron et al. 2023, eq. 2)."""
    center_rewards_coefficient: NotNegative | None = 0.01
    """Coefficient of the squared sum of a pair's scores, which keeps them centred. 0.01: Eisenstein et al. 2023."""
    head: Literal["zero", "probe"] = "zero"
    """Where the score head starts. `zero`: every answer scores 0. `probe`: where a penalised logistic regression on the
    features of the untrained trunk puts it (Kumar et al. 2022): for few pairs that are hard to tell apart."""
    calibrate: bool = False
    """Divide the scores by a temperature fitted on the held-out pairs (Guo et al. 2017), so that the difference of two
    is the log-odds that people prefer the one. The calibration error is of a temperature fitted on other pairs."""

    @model_validator(mode="after")
    def _probes_a_trunk(self) -> Self:
        if self.encoder is not None and self.head == "probe":
            raise ValueError("head=probe fits the features of a policy's trunk: with an encoder leave it out")
        return self
