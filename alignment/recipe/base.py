"""What every part of a recipe is made of: the base of its settings, and the kinds of values that stand in them."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

BASE = "base"  # the name by which stages speak of the model they all start from
CHAMPION = "champion"  # the alias of the promoted version, and its name among an evaluation's opponents
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,39}$")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Part = Literal["all", "first half", "second half"]
"""Which of the held-out prompts, in the order of their ids (which are digests): a choice between policies on one half
leaves the other half for an unbiased evaluation of what was chosen."""
Product = Literal[
    "policy", "responses", "preferences", "demonstrations", "held_out_prompts", "reward_model", "pair_classifier",
    "calibration", "evaluation", "experiment",
]  # fmt: skip
"""What stages make for others."""


class Settings(BaseModel):
    """Base of everything a recipe holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Lora(Settings):
    """Low-rank adapters on every linear layer (Hu et al. 2021; Dettmers et al. 2023 for "every")."""

    rank: Count = 16
    alpha: Positive = 32  # 2 × rank: the common scaling, and the one that learning rates here assume
    dropout: Fraction = 0.0
