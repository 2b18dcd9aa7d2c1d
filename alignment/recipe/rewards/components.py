"""Rewards as a recipe names them: a list, each told apart by its ``kind``, with a weight and a metric of its own.

    rewards:
      - {kind: number}
      - {kind: length, unit: words, at_most: 40, weight: 0.5}

What trains on them sees the weighted sum; what reports sees each. Rewards lie in [0, 1] and penalties in [-1, 0],
except those of a reward model and of a user's function. ``number``, ``exact``, ``choice``, ``code`` and
``instructions`` compare with a prompt's ``reference``, which every prompt must then have.
"""

from typing import Annotated

from pydantic import Field

from alignment.recipe.base import Product
from alignment.recipe.judges import JUDGE_READS, folder_data
from alignment.recipe.rewards.form import (
    FormatReward,
    KeywordsReward,
    LanguageReward,
    LengthPenalty,
    LengthReward,
    RepetitionPenalty,
)
from alignment.recipe.rewards.judge import JudgeReward
from alignment.recipe.rewards.reward_models import EnsembleReward, ModelReward
from alignment.recipe.rewards.settings import RewardSettings, reward_name
from alignment.recipe.rewards.user_function import FunctionReward
from alignment.recipe.rewards.verifiable import (
    ChoiceReward,
    CodeReward,
    ExactReward,
    InstructionsReward,
    JsonReward,
    NumberReward,
    RegexReward,
)

RewardComponent = Annotated[
    ModelReward | NumberReward | ExactReward | ChoiceReward | RegexReward | JsonReward | CodeReward | LengthReward
    | FormatReward | KeywordsReward | LanguageReward | LengthPenalty | RepetitionPenalty | FunctionReward | JudgeReward
    | EnsembleReward | InstructionsReward,
    Field(discriminator="kind"),
]  # fmt: skip
RewardList = tuple[RewardComponent, ...]


def reward_stages(reward: RewardSettings) -> tuple[str, ...]:
    """The stages whose reward models a reward asks."""
    if isinstance(reward, EnsembleReward):
        return reward.models
    return (reward.model,) if isinstance(reward, ModelReward) and reward.model is not None else ()


def reward_folders(rewards: RewardList) -> dict[str, str]:
    """The folders of reward models that a recipe names, by the name that they go under as the stage's data."""
    return {
        folder_data(reward.folder): reward.folder
        for reward in rewards
        if isinstance(reward, ModelReward) and reward.folder is not None
    }


REWARD_READS: dict[str, Product] = {"rewards": "reward_model", **JUDGE_READS}  # by the role of what rewards are made of
WITH_REFERENCE = (NumberReward, ExactReward, ChoiceReward, CodeReward, InstructionsReward)


def needs_reference(reward: RewardSettings) -> bool:
    """Whether a reward compares with the prompt's reference."""
    return isinstance(reward, WITH_REFERENCE) or (isinstance(reward, RegexReward) and "{reference}" in reward.pattern)


def unique_names(rewards: RewardList) -> RewardList:
    """``rewards``, where no two share a name. Raises ValueError: their metrics could not be told apart."""
    names = [reward_name(reward) for reward in rewards]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two rewards are called {name}; give one of them a name")
    return rewards
