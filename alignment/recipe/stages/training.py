"""What the settings of all supervised trainers share."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from alignment.recipe.base import Count, Fraction, NotNegative, Positive
from alignment.recipe.stages.adapters import AdaptedStage
from alignment.recipe.stages.spec import StageSettings

CutChosen = Literal["drop", "keep"]
OTHER_SCHEMES = ("int8_dynamic", "nf4", "bnb_int8", "q8_0", "q5_1", "q5_0", "q4_0")  # of `quantise`


class Optimisation(StageSettings):
    """The steps of a trainer, whatever weights it trains."""

    epochs: Positive = 1.0
    """Passes over the data."""
    learning_rate: Positive
    """Peak learning rate."""
    batch_size: Count = 8
    """Examples, or pairs, in one forward and backward pass."""
    gradient_accumulation: Count = 1
    """Batches that make one optimizer step. Each row counts the same in it (each token, where the loss is a mean over
    tokens), whatever the size of its batch."""
    max_length: Count = 1024
    """Tokens of prompt and answer together; what is longer is truncated or left out."""
    warmup: Fraction = 0.1
    """Share of the optimizer steps in which the learning rate rises linearly."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Learning rate after the warm-up."""
    weight_decay: NotNegative = 0.0
    """AdamW's decoupled weight decay (Loshchilov and Hutter 2019)."""
    max_grad_norm: Positive = 1.0
    """Norm at which gradients are clipped."""
    checkpoint_every: Count = 20
    """Optimizer steps between two checkpoints."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    workers: Count | None = None
    """Processes that share each batch. null: `resources.workers`."""

    def even_batch(self) -> tuple[int, int]:
        """The batch that workers share evenly, and how many make a step."""
        return self.batch_size, self.gradient_accumulation


class Training(AdaptedStage, Optimisation):
    """What every trainer of policies and reward models shares. ``lora: null`` trains all weights, or what ``adapter``
    says."""


def _is_known(scheme: Any) -> Any:
    if isinstance(scheme, str) and scheme in OTHER_SCHEMES:
        raise ValueError(
            f"no fake quantiser rounds as {scheme} does: set int4, q4_1 or int8, or quantise after a training without"
        )
    return scheme


class QuantisationAware(AdaptedStage):
    """What trainers share whose weights can be rounded in each forward pass."""

    qat: Annotated[Literal["int4", "q4_1", "int8"] | None, BeforeValidator(_is_known)] = None
    """Quantisation-aware training (Jacob et al. 2018): each forward pass rounds the weights of all linear layers but
    the head as a scheme of the stage `quantise` does (by `torchao`), and gradients pass the rounding as if it were not
    there. What is saved are the unrounded weights, which a stage `quantise` of the same scheme follows. `int4`: 4 bits
    with scale and minimum for each group, the largest of 128, 64 and 32 weights that divides every row; `q4_1`: the
    same for groups of 32; `int8`: 8 bits and a scale for each output. null: no rounding."""

    @model_validator(mode="after")
    def _rounds_what_it_trains(self) -> Self:
        if self.qat is not None and (part := self.trained_part()) is not None:
            raise ValueError(
                f"qat={self.qat} rounds weights that are trained, and {part.label()} keeps them as they are: "
                "set lora to null, and leave adapter out"
            )
        return self

    def rounds_weights(self) -> str | None:
        """How each forward pass of its training rounds weights."""
        return self.qat


class StudentTraining(Training):
    """What trainers share whose policy may be a student: smaller than the one that it begins as."""

    layers: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the policy's layers that are kept, evenly spaced with the first and the last among them; the others are
    removed before it learns (Sanh et al. 2019 keep every second one). null: all stay."""

    @model_validator(mode="after")
    def _has_its_own_weights(self) -> Self:
        if self.layers is not None and self.adapter_trained() is not None:
            raise ValueError(
                "a student without some of its layers has weights of its own: set lora to null, and leave adapter out"
            )
        if self.layers is not None and (self.workers or 1) > 1:
            raise ValueError("a student that loses layers is trained by one process: set workers to 1")
        return self

    def removes_layers(self) -> float | None:
        """The share of the policy's layers that stay."""
        return self.layers

    def can_be_shared(self) -> bool:
        """Whether its work may be given to workers."""
        return self.layers is None and super().can_be_shared()


class PreferenceTraining(Training):
    """What every trainer on preference pairs shares."""

    cut_chosen: CutChosen = "drop"
    """What becomes of a pair whose chosen answer was cut off at its longest length: `drop` leaves it out and counts it,
    `keep` trains on it, without an end of turn."""

    def cut_chosen_used(self) -> CutChosen:
        """What becomes of pairs whose chosen answer was cut off."""
        return self.cut_chosen

    def trained_length(self) -> int:
        """Tokens at which the conversations that it trains on are cut, or left out."""
        return self.max_length
