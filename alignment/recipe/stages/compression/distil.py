"""The settings of distillation: a student that learns a teacher's distributions."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, model_validator

from alignment.recipe.base import BASE, Count, Lora, Name, Positive
from alignment.recipe.stages.spec import StageSpec
from alignment.recipe.stages.training import StudentTraining

Divergence = Literal["forward_kl", "reverse_kl", "jensen_shannon"]
ANSWERS = "draw them by a stage `sample`, choose by `rejection_sampling`, and imitate them by `sft`"


def _is_a_stage(teacher: Any) -> Any:
    """Says of a teacher that is no stage how it becomes one, or why it cannot teach distributions."""
    if isinstance(teacher, dict) and "endpoint" in teacher:
        raise ValueError(f"an endpoint gives answers, and no distributions to learn: {ANSWERS} (sample.endpoint)")
    if isinstance(teacher, dict) or (isinstance(teacher, str) and any(mark in teacher for mark in "@/.:")):
        raise ValueError(
            "a model from outside the recipe is a stage of its own: put `kind: outside_model` with version, folder or "
            "hub before it, and name that stage"
        )
    return teacher


def _has_a_distribution(source: Any) -> Any:
    if source == "answers":
        raise ValueError(f"answers alone are imitated, which needs no distributions: {ANSWERS}")
    return source


class DistilStage(StudentTraining):
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
    teacher: Annotated[Name, BeforeValidator(_is_a_stage)]
    """The teacher: a stage that makes a policy (of kind `outside_model`: a registered version, a folder or a hub's), or
    `base`. It has the student's tokenizer and vocabulary."""
    demonstrations: Name | None = None
    """A stage that makes demonstrations. null: the file `data.demonstrations`."""
    source: Annotated[Literal["demonstrations", "on_policy"], BeforeValidator(_has_a_distribution)] = "demonstrations"
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
        if (self.source == "on_policy") != (self.max_new_tokens is not None):
            raise ValueError("max_new_tokens bounds answers that the student draws: set it with source on_policy alone")
        return self

    def drawn_length(self) -> int:
        """Tokens of the longest answer that the student draws; 0 where it draws none."""
        return self.max_new_tokens or 0

    def trained_length(self) -> int:
        """Tokens at which the conversations that it trains on are cut, or left out."""
        return self.max_length
