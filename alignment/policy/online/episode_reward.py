"""Episodes scored by several rewards."""

from collections.abc import Sequence

from alignment.distributed.workers import ALONE, Team
from alignment.policy.online.batch import Episode
from alignment.recipe.stages.environment import ENVIRONMENT
from alignment.reward.protocol import RewardInput, Rewards


class EpisodeReward:
    """Scores episodes by several rewards; ``scores`` are each one's of the newest episodes, without its weight, and
    ``means`` their means.

    The workers of ``team`` score a part each, all answers to a prompt together: a judge may compare them. With
    ``environment``, the weight of the environment's own reward, that is the last of them.
    """

    def __init__(
        self, rewards: Rewards, team: Team = ALONE, per_prompt: int = 1, *, environment: float | None = None
    ) -> None:
        self.rewards, self.team, self.per_prompt, self.environment = rewards, team, per_prompt, environment
        self.means: dict[str, float] = {}
        self.scores: dict[str, list[float]] = {}

    def __call__(self, episodes: Sequence[Episode]) -> list[float]:
        mine = self.team.mine_of(episodes, len(episodes) // self.per_prompt, self.per_prompt)
        own = self.rewards.score([_answer(episode) for episode in mine])
        rows = self.team.gather(list(zip(*(own[name] for name in self.rewards.names), strict=True)))
        columns = zip(*rows, strict=True)
        scores = {name: list(values) for name, values in zip(self.rewards.names, columns, strict=False)}
        if self.environment is not None:
            scores[ENVIRONMENT] = [episode.reward for episode in episodes]
        self.keep(scores)
        weighted = [
            [weight * value for value in column] for weight, column in zip(self.weights, scores.values(), strict=True)
        ]
        return [sum(values) for values in zip(*weighted, strict=True)]

    @property
    def weights(self) -> list[float]:
        """The weights of the rewards in their sum, in the order of ``scores``."""
        own = [component.weight for component in self.rewards.components]
        return own if self.environment is None else [*own, self.environment]

    def keep(self, scores: dict[str, list[float]]) -> None:
        """Has ``scores``, by each reward's name, be those of the newest episodes."""
        self.scores = scores
        self.means = {f"reward.{name}": sum(values) / len(values) for name, values in scores.items()}


def _answer(episode: Episode) -> RewardInput:
    completion = episode.completion
    return RewardInput(episode.prompt, completion.text, episode.drawn_tokens, completion.finished)
