"""TODO: alignment/recipe/stages/dpo.py"""

from typing import Annotated, Literal

from pydantic import Field

from alignment.recipe.base import Count, Name, Positive, Training

DpoLoss = Literal[
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
]  # fmt: skip


class DpoStage(Training):
    """Direct preference optimisation (Rafailov et al. 2023), with every loss that TRL offers."""

    kind: Literal["dpo"]
    model: Name
    preferences: Name
    learning_rate: Positive = 5e-6  # LoRA: ten times the 5e-7 of Tunstall et al. 2023 (Zephyr)
    beta: Positive = 0.1  # Rafailov et al. 2023
    loss: DpoLoss = "sigmoid"
    snapshot_every: Count | None = None  # optimizer steps: the policy is kept as it is then; None: only at the end
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
