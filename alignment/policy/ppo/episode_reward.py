"""What PPO is rewarded by: a reward model, a list of reward functions, or their sum."""

from typing import Any

from alignment.distributed.workers import Team
from alignment.models.reward_model import load_reward_model
from alignment.policy.online.episode_reward import EpisodeReward
from alignment.recipe.stages.ppo import PpoStage
from alignment.reward.factory import build_rewards, check_template, scoring
from alignment.reward.protocol import Component, Rewards
from alignment.stage import StageContext


def episode_reward(settings: PpoStage, context: StageContext, tokenizer: Any) -> tuple[Any | None, EpisodeReward]:
    """The reward model, where there is one, and the reward of it and of ``settings.rewards``.

    Where the policy is sharded, the reward model is left in main memory until a critic may have been made of it.

    Raises StageError where a reward model's chat template is not the policy's, or a function cannot be loaded.
    """
    team = Team(context.rank, context.workers)
    components = list(build_rewards(settings.rewards, context, tokenizer).components)
    if settings.reward is None:
        return None, EpisodeReward(Rewards(components), team, settings.per_prompt)
    model, own_tokenizer = load_reward_model(context.inputs[settings.reward], context.run, placed=not context.sharded)
    check_template(tokenizer, own_tokenizer, settings.reward)

    rewards = Rewards([Component("reward_model", 1.0, scoring(model, own_tokenizer)), *components])
    return model, EpisodeReward(rewards, team, settings.per_prompt)
