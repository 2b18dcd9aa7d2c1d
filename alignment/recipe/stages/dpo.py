"""The settings of DPO."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from alignment.recipe.base import Count, Lora, Name, NotNegative, Positive, refuse_dropout
from alignment.recipe.stages.spec import StageSpec
from alignment.recipe.stages.training import PreferenceTraining

DpoLoss = Literal[
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
]  # fmt: skip


class DpoStage(PreferenceTraining):
    """Direct preference optimisation (Rafailov et al. 2023), with every loss that TRL offers."""

    spec: ClassVar[StageSpec] = StageSpec(
        run="alignment.stages.dpo",
        makes=("policy",),
        reads={"model": "policy", "preferences": "preferences"},
        sharing="batches",
        headline=("rewards/accuracies", "loss"),
    )
    kind: Literal["dpo"]
    """Direct preference optimisation."""
    model: Name
    """The policy to train, which is also the reference: a stage, or `base`."""
    preferences: Name
    """The stage that makes the preference pairs."""
    learning_rate: Positive = 5e-6
    """Peak learning rate. 5e-6, for LoRA: ten times the 5e-7 of Tunstall et al. 2023 (Zephyr)."""
    beta: Positive = 0.1
    """Strength of the tie to the reference, β. 0.1: Rafailov et al. 2023."""
    loss: DpoLoss = "sigmoid"
    """TRL's name of the loss. `sigmoid`: the original one. `aot` and `aot_unpaired` sort the pairs of a batch, so that
    `batch_size` is part of the loss: each of several workers computes the whole batch, and `gradient_accumulation`
    averages over batches that are sorted one by one."""
    snapshot_every: Count | None = None
    """Optimizer steps between two snapshots of the policy, which are kept. null: only the end is."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Assumed probability that a pair's label is wrong (conservative and robust DPO). 0: none."""
    router_loss: NotNegative | None = None
    """Coefficient of the loss that has a mixture of experts use its experts alike (Fedus et al. 2022). 0: none. null:
    the one that the model's configuration names, if any."""

    @field_validator("lora")
    @classmethod
    def _no_dropout(cls, lora: Lora | None) -> Lora | None:
        return refuse_dropout(lora)

    def router_loss_used(self) -> float | None:
        """Coefficient of the routers' loss, where it is set."""
        return self.router_loss

    def snapshot_steps(self) -> int | None:
        """Optimizer steps between two snapshots of the policy."""
        return self.snapshot_every
