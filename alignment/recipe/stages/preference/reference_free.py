"""The settings of SimPO and ORPO: preference pairs without a reference."""

from typing import ClassVar, Literal

from alignment.recipe.base import Count, Name, NotNegative, Positive
from alignment.recipe.stages.spec import StageSpec
from alignment.recipe.stages.training import PreferenceTraining


class ReferenceFreeTraining(PreferenceTraining):
    """What SimPO and ORPO share."""

    model: Name
    """The policy to train: a stage, or `base`."""
    preferences: Name
    """The stage that makes the preference pairs."""
    snapshot_every: Count | None = None
    """Optimizer steps between two snapshots of the policy, which are kept. null: only the end is."""

    def snapshot_steps(self) -> int | None:
        """Optimizer steps between two snapshots of the policy."""
        return self.snapshot_every


class SimpoStage(ReferenceFreeTraining):
    """Simple preference optimisation (Meng et al. 2024): the mean log-probability of an answer's tokens is its reward,
    so that no reference is held and long answers have no advantage."""

    spec: ClassVar[StageSpec] = StageSpec(
        run="alignment.stages.simpo",
        makes=("policy",),
        reads={"model": "policy", "preferences": "preferences"},
        sharing="batches",
        headline=("rewards/accuracies", "loss"),
    )
    kind: Literal["simpo"]
    """Simple preference optimisation."""
    learning_rate: Positive = 6e-6
    """Peak learning rate. 6e-6, for LoRA: ten times the 6e-7 of Meng et al. 2024 for Llama 3 (table 7)."""
    beta: Positive = 2.0
    """Scale of the rewards, β. 2.0: Meng et al. 2024 for base models."""
    gamma: NotNegative = 1.0
    """By how much the chosen answer's reward is to exceed the other's, γ. 1.0: Meng et al. 2024, half of β."""


class OrpoStage(ReferenceFreeTraining):
    """Odds ratio preference optimisation (Hong et al. 2024): supervised fine-tuning on the chosen answers, and a term
    that makes their odds greater than the rejected ones'. It needs no SFT before it."""

    spec: ClassVar[StageSpec] = StageSpec(
        run="alignment.stages.orpo",
        makes=("policy",),
        reads={"model": "policy", "preferences": "preferences"},
        sharing="batches",
        headline=("rewards/accuracies", "loss"),
    )
    kind: Literal["orpo"]
    """Odds ratio preference optimisation."""
    learning_rate: Positive = 8e-5
    """Peak learning rate. 8e-5, for LoRA: ten times the 8e-6 of Hong et al. 2024."""
    beta: Positive = 0.1
    """Weight of the odds ratio's term, λ in the paper. 0.1: Hong et al. 2024."""
