"""The settings of a prompt's form: how a question is put to a model, and what of its answer counts."""

from typing import Annotated, Literal, Protocol, Self

from pydantic import Field, model_validator

from alignment.recipe.base import Choice, Count, Positive, Settings
from alignment.records import Sampling

EXAMPLES = "prompting.examples"  # under which name a stage is given the file of its examples


class QuestionWording(Settings):
    """The words around a question."""

    system: str | None = None
    """A system message before everything. null: the template's own, if any."""
    instruction: str = ""
    """What each question is followed by. Empty: nothing."""
    reasoning_instruction: str = 'Think step by step. Then write "{marker}" and the answer.'
    """What a question is followed by instead where a prompt asks for reasoning; `{marker}` stands for the marker."""
    marker: Annotated[str, Field(min_length=1)] = "Answer:"
    """What stands before the answer after reasoning, whatever its case."""


class PromptForm(Settings):
    """How a question is put. `{}` is the question alone, answered once: zero-shot."""

    shots: Annotated[int, Field(ge=0, le=64)] = 0
    """Solved examples that stand before the question as turns of the conversation."""
    choose: Choice = "fixed"
    """Which of them: the file's first (`fixed`), others for each question by the recipe's seed (`random`), or those
    nearest to the question in their words (`nearest`; BM25, Robertson and Zaragoza 2009), the nearest last (Liu et al.
    2022)."""
    reasoning: bool = False
    """Ask for the reasoning before the answer (chain of thought; Wei et al. 2022); examples then show theirs."""
    votes: Annotated[int, Field(ge=1, le=256)] = 1
    """Answers drawn to each question; the commonest counts (self-consistency; Wang et al. 2023). 1: no vote."""
    temperature: Positive = 0.7
    """Temperature at which several answers are drawn. 0.7: Wang et al. 2023 for large models."""
    max_new_tokens: Count | None = None
    """Tokens at which its answers are cut off. null: as `sampling` says."""

    @model_validator(mode="after")
    def _a_temperature_is_used(self) -> Self:
        for field, needed in (("temperature", self.votes > 1), ("choose", self.shots > 0)):
            given = getattr(self, field)  # a resolved recipe writes the defaults out
            if given != type(self).model_fields[field].default and not needed:
                more = "votes: 2 or more" if field == "temperature" else "shots: 1 or more"
                raise ValueError(f"{field} does nothing without {more}")
        return self

    def drawn_by(self, sampling: Sampling) -> Sampling:
        """How answers to it are drawn, where a stage draws others by ``sampling``."""
        changed: dict[str, float | int] = {}
        if self.votes > 1:
            changed["temperature"] = self.temperature
        if self.max_new_tokens is not None:
            changed["max_new_tokens"] = self.max_new_tokens
        return sampling.model_copy(update=changed)


class ReadsAnswers(Protocol):
    """How an answer is read (:mod:`alignment.prompting.answers`)."""

    @property
    def answer(self) -> str: ...
    @property
    def labels(self) -> tuple[str, ...]: ...
    @property
    def marker(self) -> str: ...
    @property
    def is_verified(self) -> bool: ...


def require_fitting_labels(answer: str, labels: tuple[str, ...]) -> None:
    """Raises ValueError where labels are given and not read, or cannot be told apart."""
    if (answer == "label") != bool(labels):
        raise ValueError("labels belong to answer: label, and only there")
    if len({label.casefold() for label in labels}) < len(labels) or len(labels) == 1:
        raise ValueError("at least two labels are needed that differ in more than case")


class Prompting(PromptForm, QuestionWording):
    """The form in which a stage puts its prompts to the models that it asks. The prompts of the stage's artifact stay
    what they were: what is trained, judged or measured afterwards sees the plain ones."""

    examples: str | None = None
    """Solved examples that prompts may show, a path relative to the recipe: rows of a prompt with `reference` (or
    `question` and `answer`) and, where reasoning is shown, `reasoning`; or demonstrations of one question each. None of
    them may be a prompt that the stage asks, nor a held-out one. null: none."""
    keep: Literal["whole", "answer"] = "whole"
    """What becomes the response: all that was written, or with `answer` what follows the last `marker` of a reasoning
    (of `answer: number`, the last number even where the marker is missing). Where nothing can be read it is empty."""
    answer: Literal["number", "label", "text"] = "text"
    """What is read of an answer where `keep: answer` reads one: its last `number`, the first of `labels` that stands in
    it as a word, or the first line after the marker as `text`."""
    labels: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """The labels, where `answer` is `label`."""

    @model_validator(mode="after")
    def _examples_are_shown(self) -> Self:
        if (self.shots > 0) != (self.examples is not None):
            raise ValueError("shots says how many of the examples are shown: give both, or neither")
        return self

    @model_validator(mode="after")
    def _what_is_read_is_kept(self) -> Self:
        if self.votes > 1 and self.keep != "answer":
            raise ValueError("votes compares what answers say: set keep to answer")
        if self.keep == "answer" and not self.reasoning and self.answer == "text" and self.votes == 1:
            raise ValueError("keep=answer leaves reasoning out, and none is asked for: set reasoning, or remove keep")
        if self.answer != "text" and self.keep != "answer":
            raise ValueError(f"answer={self.answer} is read where keep is answer: set it, or leave answer out")
        require_fitting_labels(self.answer, self.labels)
        return self

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not (self.shots or self.reasoning or self.instruction or self.system is not None or self.keep == "answer"):
            raise ValueError("it puts prompts as they are: give shots, reasoning, instruction or system")
        return self

    @property
    def is_verified(self) -> bool:
        """Whether a checker says what is right: never, nothing is right or wrong here."""
        return False
