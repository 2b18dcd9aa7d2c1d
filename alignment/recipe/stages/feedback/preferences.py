"""The settings of the stages that make preferences of simulated raters' votes, of people's, and of a file."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from alignment.recipe.base import Count, Fraction, Name, Product, Settings
from alignment.recipe.raters import SimulatedRaters
from alignment.recipe.stages.spec import StageSettings, StageSpec
from alignment.records import FeedbackKind


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


ENOUGH = 100  # pairs or answers, unless a recipe says otherwise
MADE_OF: dict[FeedbackKind, tuple[Product, ...]] = {
    "pairs": ("preferences",), "thumbs": ("feedback",), "rewrites": ("preferences", "demonstrations"),
    "scores": ("scores",), "spans": ("spans",),
}  # fmt: skip
WITH_AGREEMENT: tuple[FeedbackKind, ...] = ("pairs", "thumbs")  # of which a majority decides
LEAST = 0.5  # agreement, unless a recipe says otherwise


class HumanPreferencesStage(StageSettings):
    """People judge the responses in the raters' app. The run waits for them without taking compute.

    Enough are ``pairs`` pairs, or ``answers`` answers where ``feedback`` is of single ones, each judged by
    ``votes_per_comparison`` people of whom ``min_agreement`` agree. A recipe may have several of these stages: their
    queues are open at the same time.
    """

    spec: ClassVar[StageSpec] = StageSpec(
        run="alignment.stages.feedback.human_preferences",
        makes=("preferences", "feedback", "demonstrations", "scores", "spans"),
        reads={"responses": "responses"},
        data=("snapshot", "collection"),
        computes=False,
        headline=("pairs", "answers", "raters"),
    )
    kind: Literal["human_preferences"]
    """Preferences by people, in the raters' app."""
    responses: Name
    """The stage whose responses are judged."""
    feedback: FeedbackKind = "pairs"
    """What people are asked. `pairs`: which of two answers is better. `thumbs`: whether one answer is good, for `kto`
    (its setting `feedback`). `rewrites`: to write a better answer from one, which is a demonstration, and preferred to
    what it was made from. `scores`: to score one answer by each of `criteria`;
    where several to a prompt are shown, the one with the higher mean is preferred. `spans`: to mark parts of one answer
    with one of `labels` each."""
    comparisons_per_prompt: Count = 1
    """Pairs of responses to each prompt that are compared; of `feedback` on single answers, responses that are
    shown."""
    votes_per_comparison: Count = 3
    """People who judge each pair, or each single answer."""
    pairs: Count = ENOUGH
    """Pairs that suffice for the run to go on, where `feedback` is `pairs`."""
    answers: Count = ENOUGH
    """Answers that suffice for the run to go on, where `feedback` is of single ones."""
    min_agreement: Fraction = LEAST
    """Share of the votes that must agree on a pair, or on a thumb, for it to be trained on."""
    criteria: dict[CriterionName, Annotated[str, Field(min_length=1, max_length=500)]] = Field({}, max_length=8)
    """Criteria to score each answer by: by name, what 1, 3 and 5 mean. Empty: those of the app's settings; not with
    `feedback: scores`, whose question they are."""
    labels: dict[CriterionName, Annotated[str, Field(min_length=1, max_length=500)]] = Field({}, max_length=9)
    """Labels of marked parts, where `feedback` is `spans`: by name, what each means."""

    qualification: Qualification | None = None
    """What a rater has to get right before the first vote. null: one trial comparison, which shows the page."""

    consent: Annotated[str, Field(max_length=20_000)] = ""
    """What a rater agrees to before the first vote, in Markdown; who does not agree gets no work. Empty: the app's own
    settings hold."""
    questions: tuple[AboutRater, ...] = Field((), max_length=10)
    """Questions about the rater, asked with the consent and kept with it. Empty: the app's own settings hold."""

    @model_validator(mode="after")
    def _fits_what_is_asked(self) -> Self:
        """Raises ValueError for settings that its feedback does not read, and where those are missing that it needs."""
        used, unused = ("pairs", "answers") if self.feedback == "pairs" else ("answers", "pairs")
        if getattr(self, unused) != ENOUGH:
            raise ValueError(f"{unused}: of feedback={self.feedback} the setting {used} says how much is enough")
        if self.feedback not in WITH_AGREEMENT and self.min_agreement != LEAST:
            raise ValueError(f"min_agreement: with feedback={self.feedback} nothing is decided by a majority")
        if self.feedback == "scores" and not self.criteria:
            raise ValueError("criteria: feedback=scores needs one or more, by name, with what 1, 3 and 5 mean")
        if (self.feedback == "spans") != bool(self.labels):
            raise ValueError(
                "labels: feedback=spans needs one or more, by name, with what each means; others have none"
            )
        return self

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

    def products(self) -> tuple[Product, ...]:
        """What comes of the feedback that it asks for; of scores pairs too, where a prompt has several answers."""
        if self.feedback == "scores" and self.comparisons_per_prompt > 1:
            return (*MADE_OF[self.feedback], "preferences")
        return MADE_OF[self.feedback]

    def compares_responses(self) -> bool:
        """Whether it has the responses to a prompt compared with each other."""
        return self.feedback == "pairs"

    def pairs_wanted(self) -> int:
        """Pairs, or answers, that are enough for it."""
        return self.pairs if self.feedback == "pairs" else self.answers


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
