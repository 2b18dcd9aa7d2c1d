"""Rewards that programs verify: most compare with the prompt's ``reference``."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from alignment.recipe.base import Count, Positive
from alignment.recipe.rewards.settings import RewardSettings


class NumberReward(RewardSettings):
    """1 where the answer's result equals the reference as mathematics (``math-verify``): 1/2, 0.5 and \\frac12.

    Where the reference is a number, so must the result be: a sum that is still to be done, or a fraction that can be
    reduced, may be the question itself.
    """

    kind: Literal["number"]
    """Equality with the reference as mathematics."""
    decimals: Annotated[int, Field(ge=0, le=15)] = 6
    """Decimal places to which numbers are rounded before they are compared."""


class ExactReward(RewardSettings):
    """1 where the answer is the reference, apart from white space; by default from case and end punctuation too."""

    kind: Literal["exact"]
    """Equality with the reference as text."""
    strict: bool = False
    """Case and punctuation count as well."""


class ChoiceReward(RewardSettings):
    """1 where the letter chosen is the reference's: ``B``, ``(b)``, ``Answer: B``; the last one that is named."""

    kind: Literal["choice"]
    """Equality of the chosen letter with the reference."""
    letters: Annotated[str, Field(pattern=r"^[A-Z]{2,26}$")] = "ABCD"
    """The letters to choose from."""


class RegexReward(RewardSettings):
    """1 where a regular expression matches the answer; ``{reference}`` in it stands for the reference's text."""

    kind: Literal["regex"]
    """A match of a regular expression."""
    pattern: Annotated[str, Field(min_length=1)]
    """The expression in Python's syntax; `{reference}` stands for the reference's text, escaped."""
    whole: bool = False
    """It must match from the first character of the answer to the last."""
    ignore_case: bool = False
    """Match without regard to case."""
    seconds: Positive = 2.0
    """Time limit for one answer in seconds, after which it gets 0: a pattern may backtrack for ever."""

    @model_validator(mode="after")
    def _compiles(self) -> Self:
        try:
            re.compile(self.pattern.replace("{reference}", "x"))
        except re.error as error:
            raise ValueError(f"the pattern is no regular expression: {error}") from None
        return self


class JsonReward(RewardSettings):
    """1 where the answer (or its last fenced block) is JSON that a JSON Schema (2020-12) allows."""

    kind: Literal["json_schema"]
    """Validity under a JSON Schema."""
    definition: dict[str, Any] = Field(default_factory=dict)
    """The schema (JSON Schema 2020-12). Empty: any JSON is valid."""
    seconds: Positive = 2.0
    """Time limit for one answer in seconds, after which it gets 0."""

    @model_validator(mode="after")
    def _is_a_schema(self) -> Self:
        from jsonschema import Draft202012Validator, SchemaError

        try:
            Draft202012Validator.check_schema(self.definition)
        except SchemaError as error:
            raise ValueError(f"the definition is no JSON Schema: {error.message}") from None
        return self


class CodeReward(RewardSettings):
    """1 where the answer's Python passes the reference's, run after it: ``assert double(2) == 4``.

    See :mod:`alignment.reward.sandbox` for what the process may do.
    """

    kind: Literal["code"]
    """Passing the reference's tests."""
    seconds: Positive = 5.0
    """Wall-clock seconds for one answer."""
    memory_mb: Annotated[int, Field(ge=64)] = 512
    """Memory of one answer's process in MB."""
    processes: Count | None = None
    """Processes that run tests at a time. null: one for each core."""


class InstructionsReward(RewardSettings):
    """Whether the answer follows its prompt's verifiable instructions (IFEval; Zhou et al. 2023).

    A prompt's row holds them as IFEval's do: ``instruction_id_list``, and ``kwargs``, a mapping for each.
    """

    kind: Literal["instructions"]
    """IFEval's verifiable instructions."""
    counts: Literal["all", "share"] = "all"
    """`all`: 1 where every instruction of the prompt is followed, so that the mean is IFEval's accuracy over prompts.
    `share`: the share that is followed, which teaches more of a prompt that is half right."""
    loose: bool = False
    """An instruction is followed also where it is without the answer's first line, its last line, or its asterisks."""
