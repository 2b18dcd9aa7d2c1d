"""What the settings of all supervised trainers share."""

from typing import Literal, Self

from pydantic import model_validator

from alignment.recipe.base import BASE, ENCODER, Count, EncoderSettings, Fraction, NotNegative, Positive
from alignment.recipe.stages.adapters import AdaptedStage
from alignment.recipe.stages.spec import StageSettings

CutChosen = Literal["drop", "keep"]


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


class ScoreModelStage(PreferenceTraining):
    """What the trainers of models with one score share, which are saved as whole weights."""

    encoder: EncoderSettings | None = None
    """An encoder (BERT, RoBERTa, ModernBERT) to start from in place of `model`, with its own tokenizer, which reads a
    conversation message by message. `max_length` is then at most what it can read, and a longer prompt is cut from the
    left. null: `model`."""

    def encoder_used(self) -> EncoderSettings | None:
        """The encoder that it starts from in place of a policy."""
        return self.encoder

    def inputs(self) -> dict[str, tuple[str, ...]]:
        """The stages that it reads: no policy where it starts from an encoder."""
        named = super().inputs()
        return named if self.encoder is None else {role: read for role, read in named.items() if role != "model"}

    def model_folders(self) -> dict[str, str]:
        """The folder of its encoder, where it names one."""
        return {} if self.encoder is None or self.encoder.folder is None else {ENCODER: self.encoder.folder}

    def reads_base(self) -> bool:
        """Whether it is given the base: an encoder stands on none."""
        return self.encoder is None

    @model_validator(mode="after")
    def _starts_once(self) -> Self:
        if self.encoder is None:
            return self
        model = getattr(self, "model", BASE)
        if model != BASE:
            raise ValueError(f"model={model} and encoder: it starts from one of them, leave the other out")
        part = self.trained_part()
        if part is not None and part.label() == "ia3":
            raise ValueError("adapter=ia3 is for decoders: with an encoder set lora, bitfit or layers")
        return self

    @model_validator(mode="after")
    def _is_merged(self) -> Self:
        part = self.trained_part()
        if part is not None and part.virtual_tokens():
            raise ValueError(
                f"adapter={part.label()} cannot be merged into weights, and a {self.kind} is saved as whole weights: "
                "set lora, ia3, bitfit or layers"
            )
        return self
