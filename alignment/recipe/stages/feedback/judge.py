"""The settings of RLAIF: preferences by an AI judge."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from alignment.recipe.base import Count, Fraction, Name, NotNegative, Settings
from alignment.recipe.judges import JUDGE_READS, JudgeSettings, pays
from alignment.recipe.stages.spec import StageSettings, StageSpec
from alignment.records import RaterKind


class VoteWeights(Settings):
    """What one vote counts, by who cast it. Votes of the calibration's raters on the same answers take part above 0."""

    judge: NotNegative = 1.0
    """Weight of one of the judge's votes."""
    human: NotNegative = 0.0
    """Weight of a person's vote in the calibration's data. 0: left out."""
    simulated: NotNegative = 0.0
    """Weight of a simulated rater's vote in the calibration's data. 0: left out."""

    @model_validator(mode="after")
    def _someone_counts(self) -> Self:
        if not (self.judge or self.human or self.simulated):
            raise ValueError("every weight is 0: nobody's vote counts")
        return self

    def by_kind(self) -> dict[RaterKind, float]:
        return {"judge": self.judge, "human": self.human, "simulated": self.simulated}


class JudgeStage(StageSettings):
    """RLAIF (Bai et al. 2022; Lee et al. 2023): a judge compares the responses, after it was measured against raters.

    Both orders of a pair are judged; where they disagree, the verdict is a tie.
    """

    spec: ClassVar[StageSpec] = StageSpec(
        run="alignment.stages.feedback.judge",
        makes=("preferences", "calibration"),
        reads={"responses": "responses", **JUDGE_READS, "calibration": "preferences"},
        sharing="pieces",
        headline=("pairs",),
    )
    kind: Literal["judge"]
    """Preferences by a judge."""
    responses: Name | Annotated[tuple[Name, ...], Field(min_length=1)]
    """The stage or stages whose responses are compared."""
    judge: JudgeSettings
    """The judge."""
    comparisons_per_prompt: Count = 2
    """Pairs of responses to each prompt that are judged."""
    calibration: Name | None = None
    """A stage whose votes the judge is measured against: people's, simulated raters' or a file's. null:
    uncalibrated."""
    min_kappa: Annotated[float, Field(ge=-1, le=1)] | None = None
    """Least Cohen's κ with those raters: where the 95 % interval reaches below it, the run ends. null: no bound."""
    correct_position: bool = True
    """Subtract the mean log-odds of the first position from every verdict."""
    tie_margin: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """A calibrated probability within this of 0.5 is a tie."""
    weights: VoteWeights = VoteWeights()
    """What each kind of rater's vote counts in the consensus."""
    min_agreement: Fraction = 0.5
    """Share of the votes that must agree on a pair for it to be trained on."""
    workers: Count | None = None
    """Processes of a local judge. null: `resources.workers`. Their number does not change the verdicts."""

    @model_validator(mode="after")
    def _asked_from_one_place(self) -> Self:
        if pays(self.judge) and self.workers is not None and self.workers > 1:
            raise ValueError("an endpoint is asked from one process, by its `concurrency`: leave workers out")
        return self

    @model_validator(mode="after")
    def _needs_votes(self) -> Self:
        if self.calibration is None and self.min_kappa is not None:
            raise ValueError("min_kappa is κ with raters: name in calibration the stage that has their votes")
        if self.calibration is None and (self.weights.human or self.weights.simulated):
            raise ValueError("weights mixes in raters' votes: name in calibration the stage that has them")
        return self

    def judge_used(self) -> JudgeSettings:
        """The judge that compares."""
        return self.judge

    def can_be_shared(self) -> bool:
        """Whether its work may be given to workers: what only waits for an endpoint is not."""
        return not pays(self.judge)

    def compares_responses(self) -> bool:
        """Whether it has the responses to a prompt compared with each other."""
        return True
