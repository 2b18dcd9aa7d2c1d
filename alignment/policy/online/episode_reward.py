"""What a policy is rewarded by: a reward model, a list of reward functions, or their sum."""

from collections.abc import Sequence
from typing import Any

from alignment.distributed.workers import ALONE, Team
from alignment.models.reward_model import load_reward_model
from alignment.policy.online.batch import Episode
from alignment.recipe.stages.ppo import PpoStage
from alignment.reward.factory import build_rewards, check_template, scoring
from alignment.reward.protocol import Component, RewardInput, Rewards
from alignment.stage import StageContext


class EpisodeReward:
    """Scores episodes by several rewards; ``scores`` are each one's of the newest episodes, without its weight, and
    ``means`` their means.

    The workers of ``team`` score a part each, all answers to a prompt together: a judge may compare them.
    """

    def __init__(self, rewards: Rewards, team: Team = ALONE, per_prompt: int = 1) -> None:
        self.rewards, self.team, self.per_prompt = rewards, team, per_prompt
        self.means: dict[str, float] = {}
        self.scores: dict[str, list[float]] = {}

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        mine = self.team.mine_of(episodes, len(episodes) // self.per_prompt, self.per_prompt)
        own = self.rewards.score([_answer(episode) for episode in mine])
        rows = self.team.gather(list(zip(*(own[name] for name in self.rewards.names), strict=True)))
        columns = zip(*rows, strict=True)
        self.keep({name: list(values) for name, values in zip(self.rewards.names, columns, strict=True)})
        return self.rewards.total(self.scores)

    def keep(self, scores: dict[str, list[float]]) -> None:
        """Has ``scores``, by each reward's name, be those of the newest episodes."""
        self.scores = scores
        self.means = {f"reward.{name}": sum(values) / len(values) for name, values in scores.items()}


def _answer(episode: Episode) -> RewardInput:
    completion = episode.completion
    return RewardInput(episode.prompt, completion.text, len(completion.tokens), completion.finished)


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
