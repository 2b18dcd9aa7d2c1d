"""The settings of the stages that measure policies: an evaluation, a tournament, the over-optimisation experiment."""

from typing import Literal, Self

from pydantic import field_validator, model_validator

from alignment.recipe.base import BASE, Count, Name, Settings, SimulatedRaters
from alignment.recipe.judges import JudgeSettings
from alignment.recipe.metrics import MetricList, distinguishable
from alignment.recipe.rewards import RewardList, reward_name, unique_names
from alignment.records import Sampling

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


def _check_calibration(judge: object, calibrated_by: str | None) -> None:
    if judge is None and calibrated_by is not None:
        raise ValueError("calibrated_by is the calibration of a judge: give the judge too")
