"""What every part of a recipe is made of: the base of its settings, and the kinds of values that stand in them."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

BASE = "base"  # the name by which stages speak of the model they all start from
STAGE_PREFIX = "stage:"  # before a stage's name: the base model that it made
MADE_BASE = f"{STAGE_PREFIX}pretrain"  # what `model.base` says where a stage makes the model from nothing
CHAMPION = "champion"  # the alias of the promoted version, and its name among an evaluation's opponents
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,39}$")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Part = Literal["all", "first half", "second half"]
"""Which of the held-out prompts, in the order of their ids (which are digests): a choice between policies on one half
leaves the other half for an unbiased evaluation of what was chosen."""
Choice = Literal["fixed", "random", "nearest"]
"""Which examples a question is shown: the first, others for each question, or those nearest to it in their words."""
Product = Literal[
    "policy", "responses", "preferences", "feedback", "demonstrations", "held_out_prompts", "reward_model",
    "pair_classifier", "tokenizer", "calibration", "evaluation", "experiment", "scores", "spans",
]  # fmt: skip
"""What stages make for others."""


class Settings(BaseModel):
    """Base of everything a recipe holds."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class AdapterSettings(Settings):
    """What a stage trains in place of all weights: an adapter on a frozen base, or some of the base's own weights."""

    def label(self) -> str:
        """Its kind, as recipes name it."""
        return str(getattr(self, "kind", "lora"))

    def keeps_base(self) -> bool:
        """Whether it is an adapter, whose artifact holds what it adds; else its artifact is whole weights."""
        return True

    def virtual_tokens(self) -> int:
        """Tokens that it puts in front of every text."""
        return 0

    def starts_as_base(self) -> bool:
        """Whether it changes nothing before it is trained, so that the base alone is what it started from."""
        return True


class Lora(AdapterSettings):
    """Low-rank adapters (Hu et al. 2021), on every linear layer unless ``targets`` says which (Dettmers et al. 2023).

    A policy that is an adapter already is trained on as the adapter that it is: one adapter on one base, however many
    stages train it. ``rlhf check`` refuses a later stage's settings that say otherwise.
    """

    rank: Count = 16
    """Rank of the two factors. 16: Hu et al. 2021 find little gain above it."""
    alpha: Positive = 32
    """The adapter's output is scaled by alpha / rank. 32: twice the rank, the common choice, which the default learning
    rates assume."""
    targets: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)] | None = None
    """Linear layers that are adapted, by the end of their names: `q_proj`, or `self_attn.q_proj`. null: every linear
    layer of the text decoder, experts included, which Dettmers et al. 2023 find needed to match full training."""
    rank_stabilised: bool = False
    """Scale the adapter's output by alpha / √rank in place of alpha / rank, so that high ranks learn as fast as low
    ones (rsLoRA; Kalajdzievski 2023). At rank 16 that is four times the scale."""
    dora: bool = False
    """Train the length of each row of an adapted weight beside its direction, which the two factors change (DoRA; Liu
    et al. 2024): one number more per output, and about half more time."""
    init: Literal["zero", "pissa", "olora"] = "zero"
    """Where the two factors start. `zero`: one is drawn, the other 0. `pissa`: at the weight's largest `rank` singular
    values and vectors (Meng et al. 2024); `olora`: at the first `rank` columns and rows of its QR factors (Büyükakyüz
    2024). Both train what matters most from the first step. The start is subtracted by a frozen half of the adapter, so
    that it begins as the base, fits the base as it is, and is saved with twice the rank."""
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
