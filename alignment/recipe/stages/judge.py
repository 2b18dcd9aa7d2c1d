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
    human: NotNegative = 0.0
    simulated: NotNegative = 0.0

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
        run="alignment.stages.judge",
        makes=("preferences", "calibration"),
        reads={"responses": "responses", **JUDGE_READS, "calibration": "preferences"},
        sharing="pieces",
        headline=("pairs",),
    )
    kind: Literal["judge"]
    responses: Name | Annotated[tuple[Name, ...], Field(min_length=1)]
    judge: JudgeSettings
    comparisons_per_prompt: Count = 2
    calibration: Name | None = None  # a stage of preferences by people, simulated raters or a file; None: uncalibrated
    min_kappa: Annotated[float, Field(ge=-1, le=1)] | None = None  # Cohen's κ with the raters; below it, no RLAIF
    correct_position: bool = True  # take the mean log-odds of the first place off every verdict before it counts
    tie_margin: Annotated[float, Field(ge=0, lt=0.5)] = 0.0  # a calibrated probability this near to 0.5 is a tie
    weights: VoteWeights = VoteWeights()
    min_agreement: Fraction = 0.5  # pairs on which a smaller share of the votes agrees are not trained on
    workers: Count | None = None  # of a local judge; None: as many as `resources.workers`; the verdicts are the same

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
