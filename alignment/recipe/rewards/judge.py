"""A judge's opinion as reward."""

from typing import Annotated, Literal

from pydantic import Field

from alignment.recipe.base import Count, Fraction, Name
from alignment.recipe.judges import GenerativeJudge, LabelProbabilitiesJudge, scores_alone
from alignment.recipe.rewards.settings import RewardSettings


class JudgeReward(RewardSettings):
    """What a judge says of an answer while the policy trains (direct RLAIF, Lee et al. 2023).

    A judge of form ``score`` scores each answer by itself, in [0, 1]. Any other compares it with ``opponents`` other
    answers to its prompt, in both orders: the reward is the mean probability that it is the better one, disagreement
    counting half. An answer without any verdict gets its batch's mean, which teaches nothing.
    """

    kind: Literal["judge"]
    """The opinion of a judge."""
    judge: Annotated[LabelProbabilitiesJudge | GenerativeJudge, Field(discriminator="kind")]
    """The judge: `label_probabilities` or `generative`."""
    calibrated_by: Name | None = None
    """A stage of kind `judge` with the very same judge. null: the reward is called uncalibrated."""
    opponents: Count = 2
    """Other answers to the prompt that each answer is compared with, for judges that compare."""
    max_unread: Fraction = 0.5
    """Share of a batch without a verdict above which the run ends."""

    @property
    def alone(self) -> bool:
        """Whether each answer is judged by itself."""
        return scores_alone(self.judge)
