"""The settings of the stages that measure policies: an evaluation, a tournament, the over-optimisation experiment."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from alignment.evaluation.metric_settings import MetricList, distinguishable
from alignment.preferences.judges.settings import JudgeSettings
from alignment.recipe_base import BASE, Count, Name, Settings, SimulatedRaters
from alignment.records import Sampling
from alignment.reward.settings import RewardList, reward_name, unique_names

Part = Literal["all", "first half", "second half"]
"""Which of the held-out prompts, in the order of their ids (which are digests): a choice between policies on one half
leaves the other half for an unbiased evaluation of what was chosen."""


class EvaluateStage(Settings):
    """Candidate against opponents on held-out prompts: win rates, metrics, rewards, KL, length, repetition.

    An opponent may be ``champion``: the registered version that is promoted when the stage runs, where there is one.
    """

    kind: Literal["evaluate"]
    model: Name
    against: tuple[Name, ...] = (BASE,)
    reference: Name = BASE  # KL is measured from this model
    prompts: Name | None = None  # a preference_file stage whose held-out prompts to ask; None: those of data.prompts
    raters: SimulatedRaters | None = None  # judge by the written rubric
    judge: JudgeSettings | None = None  # judge by an AI judge, both orders of every pair
    calibrated_by: Name | None = None  # a stage of kind judge with the very same judge; None: uncalibrated
    reward: Name | None = None  # judge by this reward model
    rewards: RewardList = ()  # reward functions as metrics: means, and differences from each opponent
    metrics: MetricList = ()
    sampling: Sampling = Sampling(temperature=0.0, max_new_tokens=128)
    kl_prompts: Count = 16  # KL needs samples at temperature 1 of its own
    batch_size: Count = 64
    limit: Count | None = None  # held-out prompts
    part: Part = "all"
    workers: Count | None = None  # None: as many as `resources.workers`; what they find is the same

    @field_validator("rewards")
    @classmethod
    def _names(cls, rewards: RewardList) -> RewardList:
        return unique_names(rewards)

    @model_validator(mode="after")
    def _distinguishable(self) -> Self:
        distinguishable(self.metrics, [reward_name(reward) for reward in self.rewards])
        return self

    @model_validator(mode="after")
    def _a_judge_is_calibrated(self) -> Self:
        _check_calibration(self.judge, self.calibrated_by)
        return self


class TournamentStage(Settings):
    """Every policy against every other on held-out prompts; its output is the best of them, a model like any other.

    The best is the one with the highest win rate against ``model``, from which all started. Best-of-n from ``model``
    plays along as the baseline that needs no training; it is no model, so it cannot be the output.
    """

    kind: Literal["tournament"]
    policies: tuple[Name, ...] = Field(min_length=2)
    model: Name
    raters: SimulatedRaters | None = None
    judge: JudgeSettings | None = None  # an AI judge in the raters' place
    calibrated_by: Name | None = None  # a stage of kind judge with the very same judge; None: uncalibrated
    reward: Name | None = None  # chooses among the answers of best-of-n
    best_of: Count = 1  # candidates for each answer of best-of-n; 1: it does not play
    sampling: Sampling = Sampling(temperature=0.0, max_new_tokens=128)
    best_of_temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    kl_prompts: Count = 16  # KL from `model` needs samples at temperature 1 of its own
    batch_size: Count = 64
    limit: Count | None = None  # held-out prompts
    part: Part = "first half"
    workers: Count | None = None  # None: as many as `resources.workers`; what they find is the same

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.best_of > 1) != (self.reward is not None):
            raise ValueError("best_of above 1 needs a reward that chooses, and a reward chooses only among best_of")
        if (self.raters is None) == (self.judge is None):
            raise ValueError("name raters or a judge: who compares")
        _check_calibration(self.judge, self.calibrated_by)
        return self


def _check_calibration(judge: object, calibrated_by: str | None) -> None:
    if judge is None and calibrated_by is not None:
        raise ValueError("calibrated_by is the calibration of a judge: give the judge too")


class OveroptimisationStage(Settings):
    """The gold-reward experiment (Gao et al. 2022): true and proxy reward against the square root of the KL.

    The snapshots of each policy (``snapshot_every``), and its end, answer held-out prompts at temperature 1. The proxy
    is the reward model that they were trained on; the true reward is the raters' own score of an answer, by their
    rubric. Best-of-n needs no training: it is computed for n = 1, 2, 4 … from ``best_of`` answers of ``model``.
    """

    kind: Literal["overoptimisation"]
    policies: tuple[Name, ...] = Field(min_length=1)
    model: Name  # what they all started from, and the KL is measured from
    reward: Name
    raters: SimulatedRaters
    best_of: Annotated[int, Field(ge=2, le=4096)] = 64
    per_prompt: Count = 1  # answers of each snapshot to each prompt
    max_new_tokens: Count = 64
    batch_size: Count = 64
    limit: Count | None = None  # held-out prompts
    part: Part = "all"
