"""TODO: alignment/recipe/stages/sft.py"""

from typing import Literal

from alignment.recipe.base import BASE, Name, Positive, Training


class SftStage(Training):
    """Supervised fine-tuning, loss on the assistant's tokens only."""

    kind: Literal["sft"]
    model: Name = BASE
    demonstrations: Name | None = None  # a stage that makes them; None: the file data.demonstrations
    learning_rate: Positive = 2e-4  # LoRA: ten times full fine-tuning's 2e-5 (Dettmers et al. 2023, table 9)
    epochs: Positive = 3.0  # Ouyang et al. 2022 and Zhou et al. 2023 train several epochs on little data
    packing: bool = False
