"""What PPO is rewarded by: a reward model, a list of reward functions, or their sum."""

from collections.abc import Sequence
from typing import Any

from alignment.models.loading import load_reward_model
from alignment.policy.ppo_batch import Episode
from alignment.recipe import PpoStage
from alignment.reward.build import build_rewards, check_template
from alignment.reward.model import score
from alignment.reward.protocol import Answer, Component, Rewards
from alignment.stage import StageContext


class EpisodeReward:
    """Scores episodes by several rewards; ``means`` are each one's of the newest episodes, without its weight."""

    def __init__(self, rewards: Rewards) -> None:
        self.rewards = rewards
        self.means: dict[str, float] = {}

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        answers = [
            Answer(
                episode.prompt,
                episode.completion.text,
                len(episode.completion.tokens),
                episode.completion.finished,
                (*episode.prompt_ids, *episode.completion.tokens),
            )
            for episode in episodes
        ]
        scores = self.rewards.score(answers)
        self.means = {f"reward.{name}": sum(values) / len(values) for name, values in scores.items()}
        return self.rewards.total(scores)


def episode_reward(settings: PpoStage, context: StageContext, tokenizer: Any) -> tuple[Any | None, EpisodeReward]:
    """The reward model, where there is one, and the reward of it and of ``settings.rewards``.

    Raises StageError where a reward model's chat template is not the policy's, or a function cannot be loaded.
    """
    components = list(build_rewards(settings.rewards, context, tokenizer).components)
    if settings.reward is None:
        return None, EpisodeReward(Rewards(components))
    model, own_tokenizer = load_reward_model(context.inputs[settings.reward], context.recipe)
    check_template(tokenizer, own_tokenizer, settings.reward)

    def reward(answers: Sequence[Answer]) -> list[float]:
        """Prompt and answer are read as the policy wrote them, token by token."""
        return score(model, own_tokenizer, [list(answer.token_ids or ()) for answer in answers])

    return model, EpisodeReward(Rewards([Component("reward_model", 1.0, reward), *components]))
