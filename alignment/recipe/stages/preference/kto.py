"""The settings of KTO."""

from collections.abc import Container
from typing import Any, ClassVar, Literal, Self

from pydantic import field_validator, model_validator

from alignment.recipe.base import Count, Lora, Name, Positive, refuse_dropout
from alignment.recipe.stages.spec import StageSpec
from alignment.recipe.stages.training import PreferenceTraining

KtoLoss = Literal["kto", "apo_zero_unpaired"]


class KtoStage(PreferenceTraining):
    """Kahneman–Tversky optimisation (Ethayarajh et al. 2024): single answers that were found good or bad."""

    spec: ClassVar[StageSpec] = StageSpec(
        run="alignment.stages.kto",
        makes=("policy",),
        reads={"model": "policy", "preferences": "preferences", "feedback": "feedback"},
        data=("feedback",),
        sharing="batches",
        headline=("rewards/margins", "loss"),
    )
    kind: Literal["kto"]
    """Kahneman–Tversky optimisation."""
    model: Name
    """The policy to train, which is also the reference: a stage, or `base`."""
    preferences: Name | None = None
    """A stage whose chosen answers are good and whose rejected ones are bad. null: `feedback`."""
    feedback: Name | None = None
    """A stage that has people give thumbs to single answers (`human_preferences` with `feedback: thumbs`). null:
    `preferences`, or the file `data.feedback`, whose rows are single answers with thumbs."""
    learning_rate: Positive = 5e-6
    """Peak learning rate. 5e-6, for LoRA: ten times the 5e-7 of Ethayarajh et al. 2024."""
    beta: Positive = 0.1
    """Strength of the tie to the reference, β. 0.1: Ethayarajh et al. 2024."""
    loss: KtoLoss = "kto"
    """TRL's name of the loss. `kto` measures rewards from the policy's KL to the reference, estimated on the
    batch from answers to other prompts, so that `batch_size` is part of the loss; the authors advise 4 or more.
    `apo_zero_unpaired` measures them from 0 (D'Oosterlinck et al. 2024)."""
    desirable_weight: Positive = 1.0
    """Weight of the good answers, λ_D. With n good and m bad ones, n λ_D / (m λ_U) is best between 1 and 4/3
    (Ethayarajh et al. 2024, eq. 8)."""
    undesirable_weight: Positive = 1.0
    """Weight of the bad answers, λ_U."""
    snapshot_every: Count | None = None
    """Optimizer steps between two snapshots of the policy, which are kept. null: only the end is."""

    @field_validator("lora")
    @classmethod
    def _same_twice(cls, lora: Lora | None) -> Lora | None:
        return refuse_dropout(lora)

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        """Raises ValueError where two stages make its answers."""
        if self.preferences is not None and self.feedback is not None:
            raise ValueError(
                f"answers come from preferences={self.preferences} or from feedback={self.feedback}; leave one out"
            )
        return self

    def data_files(self, given: Container[str] = ()) -> tuple[str, ...]:
        """The file of thumbs, where no stage makes its answers."""
        return () if self.preferences is not None else super().data_files(given)

    def estimates_kl(self) -> bool:
        """Whether its loss needs the KL of each batch."""
        return self.loss == "kto"

    def snapshot_steps(self) -> int | None:
        """Optimizer steps between two snapshots of the policy."""
        return self.snapshot_every

    def lighter(self) -> dict[str, Any] | None:
        """Recomputed activations alone: a smaller batch is another estimate of the KL, and another loss."""
        changes = super().lighter()
        return changes if changes == {"gradient_checkpointing": True} else None
