"""The settings of the stages that make preferences of simulated raters' votes, of people's, and of a file."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from alignment.recipe.base import Count, Fraction, Name, Settings
from alignment.recipe.raters import SimulatedRaters
from alignment.recipe.stages.spec import StageSettings, StageSpec


class PreferencesStage(StageSettings):
    """Raters compare the responses; their votes become consensus pairs with margins."""

    spec: ClassVar[StageSpec] = StageSpec(
        run="alignment.stages.feedback.preferences",
        makes=("preferences",),
        reads={"responses": "responses"},
        computes=False,
        headline=("pairs",),
    )
    kind: Literal["preferences"]
    """Preferences by simulated raters."""
    responses: Name | Annotated[tuple[Name, ...], Field(min_length=1)]
    """The stage or stages whose responses are compared."""
    raters: SimulatedRaters
    """The raters."""
    comparisons_per_prompt: Count = 2
    """Pairs of responses to each prompt that are compared."""
    min_agreement: Fraction = 0.5
    """Share of the raters that must agree on a pair for it to be trained on; its votes are kept either way."""

    def named_files(self) -> dict[str, str]:
        """The rubric."""
        return {"rubric": self.raters.rubric}

    def compares_responses(self) -> bool:
        """Whether it has the responses to a prompt compared with each other."""
        return True


CriterionName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,23}$")]


class Qualification(Settings):
    """Comparisons with a known answer that a rater votes on first, and how many of them have to be right."""

    questions: str
    """A file of comparisons whose better answer is known (`prompt`, `chosen`, `rejected`), relative to the recipe."""
    pass_mark: Fraction = 0.8
    """Share of the trial, the app's own comparison included, that must be right. Who is below gets no work."""


class AboutRater(Settings):
    """A question about the rater, which is answered once, before work."""

    name: CriterionName
    """Its column in `rlhf raters consents`."""
    text: Annotated[str, Field(min_length=1, max_length=500)]
    """The question."""
    choices: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] = Field(min_length=2, max_length=30)
    """The answers to choose from."""


class HumanPreferencesStage(StageSettings):
    """People compare the responses in the raters' app. The run waits for them without taking compute.

    Enough are ``pairs`` pairs, each judged by ``votes_per_comparison`` people of whom ``min_agreement`` agree.
    ``criteria`` (name: what 1, 3 and 5 mean) are what they may score each answer by; left out, the desk's own.
    """

    spec: ClassVar[StageSpec] = StageSpec(
        run="alignment.stages.feedback.human_preferences",
        makes=("preferences",),
        reads={"responses": "responses"},
        data=("snapshot", "collection"),
        computes=False,
        headline=("pairs", "raters"),
    )
    kind: Literal["human_preferences"]
    """Preferences by people, in the raters' app."""
    responses: Name
    """The stage whose responses are compared."""
    comparisons_per_prompt: Count = 1
    """Pairs of responses to each prompt that are compared."""
    votes_per_comparison: Count = 3
    """People who judge each pair."""
    pairs: Count = 100
    """Pairs that suffice for the run to go on."""
    min_agreement: Fraction = 0.5
    """Share of the votes that must agree on a pair for it to be trained on."""
    criteria: dict[CriterionName, Annotated[str, Field(min_length=1, max_length=500)]] = Field({}, max_length=8)
    """Criteria to score each answer by: by name, what 1, 3 and 5 mean. Empty: those of the app's settings."""

    qualification: Qualification | None = None
    """What a rater has to get right before the first vote. null: one trial comparison, which shows the page."""

    consent: Annotated[str, Field(max_length=20_000)] = ""
    """What a rater agrees to before the first vote, in Markdown; who does not agree gets no work. Empty: the app's own
    settings hold."""
    questions: tuple[AboutRater, ...] = Field((), max_length=10)
    """Questions about the rater, asked with the consent and kept with it. Empty: the app's own settings hold."""

    @field_validator("questions")
    @classmethod
    def _questions_differ(cls, value: tuple[AboutRater, ...]) -> tuple[AboutRater, ...]:
        if len({question.name for question in value}) != len(value):
            raise ValueError("two questions have the same name")
        if any(len(set(question.choices)) != len(question.choices) for question in value):
            raise ValueError("a question has the same answer twice")
        return value

    def named_files(self) -> dict[str, str]:
        """The questions of the qualification."""
        return {} if self.qualification is None else {"qualification": self.qualification.questions}

    def compares_responses(self) -> bool:
        """Whether it has the responses to a prompt compared with each other."""
        return True

    def pairs_wanted(self) -> int:
        """Pairs that are enough for it."""
        return self.pairs


class PreferenceFileStage(StageSettings):
    """Preferences that the user brings (``data.preferences``)."""

    spec: ClassVar[StageSpec] = StageSpec(
        run="alignment.stages.feedback.preference_file",
        makes=("preferences", "held_out_prompts"),
        data=("preferences",),
        computes=False,
        headline=("pairs",),
    )
    kind: Literal["preference_file"]
    """Preferences from the file `data.preferences`."""
    format: Literal["auto", "trl", "hh_rlhf", "oasst"] = "auto"
    """Format of the file. `auto`: recognised by its fields."""
    limit: Count | None = None
    """Pairs, taken in the order of their digests. null: all."""
