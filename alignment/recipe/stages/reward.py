"""TODO: alignment/recipe/stages/reward.py"""

from typing import Literal

from alignment.recipe.base import BASE, Name, NotNegative, Positive, Training


class RewardStage(Training):
    """A Bradley–Terry reward model (Ouyang et al. 2022, eq. 1; margins as in Touvron et al. 2023, eq. 2)."""

    kind: Literal["reward"]
    model: Name = BASE
    preferences: Name
    learning_rate: Positive = 1e-4  # LoRA: ten times the 1e-5 of Touvron et al. 2023
    use_margin: bool = False
    center_rewards_coefficient: NotNegative | None = 0.01  # Eisenstein et al. 2023: keeps scores centred
