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


class Settings(BaseModel):
    """Base of everything a recipe holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Lora(Settings):
    """Low-rank adapters on every linear layer (Hu et al. 2021; Dettmers et al. 2023 for "every")."""

    rank: Count = 16
    alpha: Positive = 32  # 2 × rank: the common scaling, and the one that learning rates here assume
    dropout: Fraction = 0.0


class Training(Settings):
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


class SimulatedRaters(Settings):
    """Programs that follow a written rubric, with noise. Always called simulated wherever they show."""

    rubric: str  # a YAML file, relative to the recipe: see alignment/preferences/rubric.py
    count: Count = 3
    noise: NotNegative = 0.5  # standard deviation added to a rater's score of each response, in rubric points
    tie_margin: NotNegative = 0.25  # two scores nearer than this are a tie
