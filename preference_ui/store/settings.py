"""What an administrator decides about the raters' work: one versioned document in the store."""

from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator

Share = Annotated[float, Field(ge=0, le=1)]
Policy = Literal["random", "least_voted", "most_informative"]

GUIDELINES = """\
## What to do

You see a conversation and several answers to its last message. Nobody tells you who wrote them. **Say which answer you
would rather have received.**

1. **Helpful**: does it do what was asked, completely, and no more than that?
2. **Truthful**: is what it says right? A confident mistake is worse than an honest "I do not know".
3. **Harmless**: could acting on it hurt somebody?

Length is not quality. If two answers are equally good, say that they are tied; if none is acceptable, say so. Skip what
you cannot judge. Flag what is unsafe, broken, or names a private person.

Your votes can be undone, the last first. Press `?` at any time for the keys.
"""


class Criterion(BaseModel):
    """A dimension that raters may score, 1 (poor) to 5 (excellent), for each answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = Field(pattern=r"^[a-z][a-z0-9_-]{0,23}$")
    rubric: str = Field(min_length=1, max_length=500)


class SpanLabel(BaseModel):
    """What raters may say of a part of an answer that they mark."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = Field(pattern=r"^[a-z][a-z0-9_-]{0,23}$")
    rubric: str = Field(min_length=1, max_length=500)  # what it means


Named = TypeVar("Named", Criterion, SpanLabel)


class RaterQuestion(BaseModel):
    """A question about the rater, with the answers to choose from."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = Field(pattern=r"^[a-z][a-z0-9_-]{0,23}$")
    text: str = Field(min_length=1, max_length=500)
    choices: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] = Field(min_length=2, max_length=30)


class DeskSettings(BaseModel):
    """How comparisons are handed out and what raters are asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    guidelines: str = Field(default=GUIDELINES, max_length=20_000)
    criteria: tuple[Criterion, ...] = Field(
        default=(
            Criterion(name="helpful", rubric="Does what was asked. 1: misses the point; 3: partly; 5: all of it."),
            Criterion(name="truthful", rubric="Right, and honest about doubt. 1: misleading; 3: slips; 5: correct."),
            Criterion(name="harmless", rubric="Safe to act on. 1: dangerous; 3: careless; 5: no harm in it."),
        ),
        max_length=8,
    )
    policy: Policy = "least_voted"
    random_share: Share = 0.1  # drawn at random whatever the policy, so that figures stay unbiased
    gold_share: Share = 0.05
    repeat_share: Share = 0.03
    repeat_after: int = Field(default=10, ge=1)  # votes of a rater between a comparison and its repeat
    lease_minutes: float = Field(default=30, gt=0, le=24 * 60)
    trial_required: bool = True
    pass_mark: Share | None = None  # of the trial's comparisons that must be right; None: the first one shows the page
    hourly_rate: float = Field(default=0.0, ge=0, le=10_000)  # pay for an hour of work; 0: not reckoned
    idle_minutes: float = Field(default=5.0, gt=0, le=24 * 60)  # no vote counts as more work than this

    consent: str = Field(default="", max_length=20_000)  # what a rater agrees to before work; empty: nothing
    questions: tuple[RaterQuestion, ...] = Field(default=(), max_length=10)  # about the rater, before work

    @field_validator("questions")
    @classmethod
    def _questions_differ(cls, value: tuple[RaterQuestion, ...]) -> tuple[RaterQuestion, ...]:
        if len({question.name for question in value}) != len(value):
            raise ValueError("two questions have the same name")
        if any(len(set(question.choices)) != len(question.choices) for question in value):
            raise ValueError("a question has the same answer twice")
        return value

    @field_validator("criteria")
    @classmethod
    def _names_differ(cls, value: tuple[Criterion, ...]) -> tuple[Criterion, ...]:
        return different_names(value)


def different_names(criteria: tuple[Named, ...], what: str = "criteria") -> tuple[Named, ...]:
    """The same criteria, or labels. Raises ValueError where two have one name."""
    if len({criterion.name for criterion in criteria}) != len(criteria):
        raise ValueError(f"two {what} have the same name")
    return criteria
