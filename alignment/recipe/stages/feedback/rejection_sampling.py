"""The settings of rejection sampling: the best of several responses become demonstrations."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from alignment.recipe.base import Count, Name
from alignment.recipe.rewards.components import REWARD_READS, RewardList, unique_names
from alignment.recipe.stages.spec import StageSettings, StageSpec


class RejectionSamplingStage(StageSettings):
    """Rejection-sampling fine-tuning's first half (Touvron et al. 2023, section 3.2.3; Yuan et al. 2023): of each
    prompt's responses those with the highest reward become demonstrations, which a stage `sft` imitates.

    Responses that were cut off are left out, and so are repeated ones."""

    spec: ClassVar[StageSpec] = StageSpec(
        run="alignment.stages.feedback.rejection_sampling",
        makes=("demonstrations",),
        reads={"responses": "responses", **REWARD_READS},
        headline=("demonstrations", "reward"),
    )
    kind: Literal["rejection_sampling"]
    """Demonstrations that are the best of several responses."""
    responses: Name | Annotated[tuple[Name, ...], Field(min_length=1)]
    """The stage or stages whose responses are chosen from; several to a prompt."""
    rewards: Annotated[RewardList, Field(min_length=1)]
    """What is summed up to a response's reward."""
    keep: Count = 1
    """Responses to each prompt that are kept. 1: Touvron et al. 2023."""
    above: float | None = Field(default=None, allow_inf_nan=False)
    """Reward that a response must exceed. null: the best is kept however bad it is."""

    @field_validator("rewards")
    @classmethod
    def _names(cls, rewards: RewardList) -> RewardList:
        return unique_names(rewards)

    def inputs(self) -> dict[str, tuple[str, ...]]:
        """The stages whose responses it reads."""
        return {"responses": (self.responses,) if isinstance(self.responses, str) else self.responses}

    def compares_responses(self) -> bool:
        """Whether one response to a prompt leaves nothing to choose: not where a reward has to be exceeded."""
        return self.above is None

    def demonstrations_kept(self) -> int:
        """Responses to each prompt that are kept."""
        return self.keep

    def rewards_used(self) -> tuple[Any, ...]:
        """Its rewards."""
        return self.rewards
