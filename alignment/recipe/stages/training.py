"""What the settings of all supervised trainers share."""

from typing import Literal

from alignment.recipe.base import Count, Fraction, Lora, NotNegative, Positive
from alignment.recipe.stages.spec import StageSettings


class Training(StageSettings):
    """What every trainer shares. ``lora: null`` trains all weights."""

    epochs: Positive = 1.0
    learning_rate: Positive
    batch_size: Count = 8  # examples (or pairs) in one forward and backward pass
    gradient_accumulation: Count = 1
    max_length: Count = 1024  # tokens of prompt and answer together
    warmup: Fraction = 0.1  # share of the steps
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: NotNegative = 0.0
    max_grad_norm: Positive = 1.0
    checkpoint_every: Count = 20  # optimizer steps between checkpoints
    gradient_checkpointing: bool = False
    lora: Lora | None = Lora()
    workers: Count | None = None  # None: as many as `resources.workers`; they share each batch

    def even_batch(self) -> tuple[int, int]:
        """The batch that workers share evenly, and how many make a step."""
        return self.batch_size, self.gradient_accumulation
