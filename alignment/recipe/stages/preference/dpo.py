"""The settings of DPO."""

from typing import Annotated, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from alignment.recipe.base import Count, Lora, Name, NotNegative, Positive, refuse_dropout
from alignment.recipe.stages.spec import StageSpec
from alignment.recipe.stages.training import PreferenceTraining, QuantisationAware

DpoLoss = Literal[
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
]  # fmt: skip

DpoLosses = Annotated[
    Annotated[DpoLoss, Tag("name")] | Annotated[tuple[DpoLoss, ...], Tag("list"), Field(min_length=1)],
    Discriminator(lambda given: "list" if isinstance(given, list | tuple) else "name"),
]
SORTED = ("aot", "aot_unpaired")
SMOOTHED = ("robust", "exo_pair", *SORTED)  # the losses that read label_smoothing


class DpoStage(PreferenceTraining, QuantisationAware):
    """Direct preference optimisation (Rafailov et al. 2023), with every loss that TRL offers."""

    spec: ClassVar[StageSpec] = StageSpec(
        run="alignment.stages.dpo",
        makes=("policy",),
        reads={"model": "policy", "preferences": "preferences"},
        sharing="batches",
        encoder_decoder_roles=("model",),
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
    loss: DpoLosses = "sigmoid"
    """TRL's name of the loss, or a list of several, whose weighted sum it is: `[sigmoid, sft]` keeps the chosen answers
    likely (Pang et al. 2024). `sigmoid`: the original one. `sigmoid_norm` and `ipo` divide the log-probabilities by
    the answers' lengths, so that a long answer does not count more. `aot` and `aot_unpaired` sort the pairs of a
    batch, so that `batch_size` is part of the loss: each of several workers computes the whole batch, and
    `gradient_accumulation` averages over batches that are sorted one by one."""
    loss_weights: Annotated[tuple[Positive, ...], Field(min_length=1)] | None = None
    """The weight of each of several losses, in their order. null: 1 for all of them, as in TRL."""
    refresh_reference: Count | None = None
    """Optimizer steps after which the policy becomes its own reference, again and again (the hard update of TR-DPO,
    Gorbatovski et al. 2024, who take 512). Rewards are measured from the newest reference. null: the reference stays
    what the policy was at the start."""
    snapshot_every: Count | None = None
    """Optimizer steps between two snapshots of the policy, which are kept. null: only the end is."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Assumed probability that a pair's label is wrong, which `robust`, `exo_pair`, `aot` and `aot_unpaired` read. 0:
    none."""
    router_loss: NotNegative | None = None
    """Coefficient of the loss that has a mixture of experts use its experts alike (Fedus et al. 2022). 0: none. null:
    the one that the model's configuration names, if any."""

    @field_validator("lora")
    @classmethod
    def _no_dropout(cls, lora: Lora | None) -> Lora | None:
        return refuse_dropout(lora)

    def losses(self) -> tuple[DpoLoss, ...]:
        """TRL's names of its losses."""
        return self.loss if isinstance(self.loss, tuple) else (self.loss,)

    def weights(self) -> tuple[float, ...]:
        """The weight of each of its losses."""
        return self.loss_weights or (1.0,) * len(self.losses())

    def sorts_pairs(self) -> bool:
        """Whether its loss is of a batch's sorted log-ratios, and not of each pair alone."""
        return any(loss in SORTED for loss in self.losses())

    def router_loss_used(self) -> float | None:
        """Coefficient of the routers' loss, where it is set."""
        return self.router_loss

    def snapshot_steps(self) -> int | None:
        """Optimizer steps between two snapshots of the policy."""
        return self.snapshot_every
