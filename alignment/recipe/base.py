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

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Lora(Settings):
    """Low-rank adapters on every linear layer (Hu et al. 2021; Dettmers et al. 2023 for "every")."""

    rank: Count = 16
    """Rank of the two factors. 16: Hu et al. 2021 find little gain above it."""
    alpha: Positive = 32
    """The adapter's output is scaled by alpha / rank. 32: twice the rank, the common choice, which the default learning
    rates assume."""
    dropout: Fraction = 0.0
    """Probability with which an input of the adapter is set to 0 in training. 0: none."""


def refuse_dropout(lora: Lora | None) -> Lora | None:
    """For stages that compare a policy with what it started from. Raises ValueError where an adapter has dropout."""
    if lora is not None and lora.dropout:
        raise ValueError(
            f"lora.dropout={lora.dropout:g}: the policy is compared with what it was, so dropout stays off; "
            "leave it at 0"
        )
    return lora
