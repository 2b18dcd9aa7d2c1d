"""The settings of distillation: a student that learns a teacher's distributions."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from alignment.recipe.base import BASE, Count, Lora, Name, Positive
from alignment.recipe.stages.spec import StageSpec
from alignment.recipe.stages.training import Training

Divergence = Literal["forward_kl", "reverse_kl", "jensen_shannon"]


class DistilStage(Training):
    """A student learns the teacher's next-token distributions, on demonstrations or on its own answers."""

    spec: ClassVar[StageSpec] = StageSpec(
        run="alignment.stages.compression.distil",
        makes=("policy",),
        reads={"model": "policy", "teacher": "policy", "demonstrations": "demonstrations"},
        data=("demonstrations",),
        headline=("divergence", "loss"),
    )
    kind: Literal["distil"]
    """Distillation."""
    model: Name = BASE
    """The student: a stage, or `base`."""
    teacher: Name
    """The teacher: a stage that makes a policy, or `base`. All of a recipe's models have one tokenizer."""
    demonstrations: Name | None = None
    """A stage that makes demonstrations. null: the file `data.demonstrations`."""
    layers: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the student's layers that are kept, evenly spaced with the first and the last among them; the others are
    removed before it learns (Sanh et al. 2019 keep every second one). null: all stay."""
    source: Literal["demonstrations", "on_policy"] = "demonstrations"
    """Whose answers are looked at: those of the demonstrations, or with `on_policy` answers that the student draws
    anew to their prompts at each step (Agarwal et al. 2024)."""
    divergence: Divergence = "forward_kl"
    """What is made small at each token. `forward_kl` has the student cover all that the teacher would say, `reverse_kl`
    has it say nothing that the teacher would not, `jensen_shannon` is between them."""
    temperature: Positive = 1.0
    """Divisor of both models' logits. 1: the distributions as they are."""
    top_k: Count | None = None
    """Tokens of the teacher's distribution that are told apart; all others count as one. null: all."""
    max_new_tokens: Count | None = None
    """Tokens at which an answer that the student draws is cut off; `on_policy` needs it. null: it draws none."""
    epochs: Positive = 3.0
    """Passes over the demonstrations. 3: as in supervised fine-tuning."""
    learning_rate: Positive = 2e-4
    """Peak learning rate. 2e-4: that of supervised fine-tuning with LoRA. With all weights, a tenth of it is usual."""
    lora: Lora | None = None
    """The low-rank adapter to train. null: all weights, or what `adapter` says."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.layers is not None and self.adapter_trained() is not None:
            raise ValueError("a student without some of its layers has weights of its own: leave lora and adapter out")
        if (self.source == "on_policy") != (self.max_new_tokens is not None):
            raise ValueError("max_new_tokens bounds answers that the student draws: set it with source on_policy alone")
        return self

    def drawn_length(self) -> int:
        """Tokens of the longest answer that the student draws; 0 where it draws none."""
        return self.max_new_tokens or 0

    def trained_length(self) -> int:
        """Tokens at which the conversations that it trains on are cut, or left out."""
        return self.max_length

    def removes_layers(self) -> float | None:
        """The share of the student's layers that stay."""
        return self.layers

    def can_be_shared(self) -> bool:
        """Whether its work may be given to workers."""
        return False
