"""Rewards for the form of an answer: its length, layout, words and script; and the penalties."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from alignment.recipe.base import Count
from alignment.recipe.rewards.settings import RewardSettings

Unit = Literal["words", "sentences", "lines", "characters", "tokens"]
Form = Literal[
    "bullets", "numbered", "json", "one_paragraph", "one_line", "lowercase", "uppercase", "capitalised", "no_comma",
    "quoted", "ends_with_full_stop", "ends_with_question_mark", "no_markdown",
]  # fmt: skip
Script = Literal[
    "latin", "cyrillic", "greek", "arabic", "hebrew", "devanagari", "cjk", "hiragana", "katakana", "hangul"
]


class LengthReward(RewardSettings):
    """1 where the answer's length lies within the bounds."""

    kind: Literal["length"]
    """A length within bounds."""
    unit: Unit = "words"
    """What is counted."""
    at_least: Annotated[int, Field(ge=0)] = 0
    """Least length, in units."""
    at_most: Annotated[int, Field(ge=0)] | None = None
    """Greatest length, in units. null: no upper bound."""

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.at_most is not None and self.at_most < self.at_least:
            raise ValueError(f"no length is at least {self.at_least} and at most {self.at_most}")
        return self


class FormatReward(RewardSettings):
    """The share of the forms that the answer has."""

    kind: Literal["format"]
    """The share of required forms."""
    forms: tuple[Form, ...] = Field(min_length=1)
    """The forms that an answer must have."""


class KeywordsReward(RewardSettings):
    """The share of the conditions that hold: each required word stands in the answer, each forbidden one does not."""

    kind: Literal["keywords"]
    """The share of keyword conditions that hold."""
    required: tuple[str, ...] = ()
    """Words that must stand in the answer."""
    forbidden: tuple[str, ...] = ()
    """Words that must not."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not all(word.strip() for word in (*self.required, *self.forbidden)):
            raise ValueError("a keyword is empty")
        if not self.required and not self.forbidden:
            raise ValueError("give required or forbidden words")
        return self


class LanguageReward(RewardSettings):
    """The share of the answer's letters that are of one script: a check of the language as far as letters tell it."""

    kind: Literal["language"]
    """The share of letters of a script."""
    script: Script
    """The script that the letters should be of."""


class LengthPenalty(RewardSettings):
    """0 up to ``free``, then falling in a line to -1 at ``full`` (soft overlong punishment, Yu et al. 2025, eq. 13)."""

    kind: Literal["length_penalty"]
    """A penalty on long answers."""
    unit: Unit = "words"
    """What is counted."""
    free: Annotated[int, Field(ge=0)]
    """Length up to which the penalty is 0, in units."""
    full: Count
    """Length at which the penalty reaches -1, in units."""

    @model_validator(mode="after")
    def _falls(self) -> Self:
        if self.full <= self.free:
            raise ValueError(f"full={self.full} is not more than free={self.free}")
        return self


class RepetitionPenalty(RewardSettings):
    """Minus the share of the answer's word n-grams that stood in it before (Welleck et al. 2020, seq-rep-n)."""

    kind: Literal["repetition_penalty"]
    """A penalty on repeated n-grams."""
    ngram: Count = 3
    """Words in an n-gram."""
