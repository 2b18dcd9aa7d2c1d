"""The settings of the reward model."""

from typing import ClassVar, Literal

from alignment.recipe.base import BASE, Name, NotNegative, Positive
from alignment.recipe.stages.spec import StageSpec
from alignment.recipe.stages.training import Training


class RewardStage(Training):
    """A Bradley–Terry reward model (Ouyang et al. 2022, eq. 1; margins as in Touvron et al. 2023, eq. 2)."""

    spec: ClassVar[StageSpec] = StageSpec(
        run="alignment.stages.reward",
        makes=("reward_model",),
        reads={"model": "policy", "preferences": "preferences"},
        sharing="batches",
        headline=("accuracy",),
    )
    kind: Literal["reward"]
    model: Name = BASE
    preferences: Name
    learning_rate: Positive = 1e-4  # LoRA: ten times the 1e-5 of Touvron et al. 2023
    use_margin: bool = False
    center_rewards_coefficient: NotNegative | None = 0.01  # Eisenstein et al. 2023: keeps scores centred

    def trained_length(self) -> int:
        """Tokens at which the conversations that it trains on are cut, or left out."""
        return self.max_length
