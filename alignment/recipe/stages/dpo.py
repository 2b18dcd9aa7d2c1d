"""The settings of DPO."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from alignment.recipe.base import Count, Name, Positive
from alignment.recipe.stages.spec import StageSpec
from alignment.recipe.stages.training import Training

DpoLoss = Literal[
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
]  # fmt: skip


class DpoStage(Training):
    """Direct preference optimisation (Rafailov et al. 2023), with every loss that TRL offers."""

    spec: ClassVar[StageSpec] = StageSpec(
        run="alignment.stages.dpo",
        makes=("policy",),
        reads={"model": "policy", "preferences": "preferences"},
        sharing="batches",
        headline=("rewards/accuracies", "loss"),
    )
    kind: Literal["dpo"]
    model: Name
    preferences: Name
    learning_rate: Positive = 5e-6  # LoRA: ten times the 5e-7 of Tunstall et al. 2023 (Zephyr)
    beta: Positive = 0.1  # Rafailov et al. 2023
    loss: DpoLoss = "sigmoid"
    snapshot_every: Count | None = None  # optimizer steps: the policy is kept as it is then; None: only at the end
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0

    def snapshot_steps(self) -> int | None:
        """Optimizer steps between two snapshots of the policy."""
        return self.snapshot_every

    def trained_length(self) -> int:
        """Tokens at which the conversations that it trains on are cut, or left out."""
        return self.max_length
