"""What the settings of every reward have."""

from pydantic import Field

from alignment.recipe.base import Name, Settings


class RewardSettings(Settings):
    """What all rewards have: a weight in the sum, and a name for their metric (None: the kind)."""

    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Weight in the sum of the rewards."""
    name: Name | None = None
    """Name of the reward's metric. null: the kind."""


def reward_name(reward: RewardSettings) -> str:
    """What a reward's metric is called."""
    return reward.name or str(reward.kind)  # type: ignore[attr-defined]  # every member of the union has one
