"""Where a step's answers come from: drawn when they are wanted, or a step ahead, while the policy trains.

Ahead (``max_staleness: 1``) the rollout workers draw the next step's answers with the weights as they are before this
step's update. Importance weights make up for the update in between, and an answer that is staler than that is refused.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch

from alignment.policy.ppo.batch import Episode
from alignment.policy.ppo.experience import asked, choose_prompts, episodes_of, refuse_stale
from alignment.recipe.stages.ppo import PpoStage
from alignment.rollouts.distributed_engine import PushedEngine
from alignment.rollouts.engine import Completion, Engine, Groups, PromptIds


class EpisodeSampler:
    """The answers of each step in turn. A version of the weights is named by the number of steps that made it."""

    def __init__(self, engine: Engine, prompts: Sequence[PromptIds], settings: PpoStage, *, seed: int) -> None:
        self.engine, self.prompts, self.settings, self.seed = engine, prompts, settings, seed
        self.count = settings.episodes // settings.per_prompt  # prompts of a step
        self._begun: Callable[[], Groups] | None = None

    def push(self, policy: Any, version: int) -> None:
        """Has the engine sample from the policy as it is, where its weights are elsewhere."""
        if isinstance(self.engine, PushedEngine):
            self.engine.push(policy, version)

    def take(self, policy: Any, step: int) -> list[Episode]:
        """The episodes of ``step`` (from 0). Raises StageError where one is too stale, or has no tokens."""
        chosen = self._chosen(step)
        if self._begun is None:
            self.push(policy, step)
            groups = self.engine.generate(**asked(chosen, self.settings, seed=self.seed, step=step))
        else:
            groups, self._begun = self._begun(), None
        episodes = episodes_of(chosen, groups)
        refuse_stale(episodes, step, self.settings.max_staleness)
        return episodes

    def begin(self, policy: Any, step: int) -> None:
        """Has the next step, ``step``, drawn with the policy as it is before this one's update."""
        if self.settings.max_staleness and step < self.settings.steps and isinstance(self.engine, PushedEngine):
            self.engine.push(policy, step - 1)
            begun = self.engine.begin(**asked(self._chosen(step), self.settings, seed=self.seed, step=step))
            self._begun = cache(begun)  # may be wanted twice: by a checkpoint, and by the step

    def ahead(self) -> list[list[dict[str, Any]]] | None:
        """What is drawn ahead, for a checkpoint (waits until it is drawn); None where nothing is."""
        if self._begun is None:
            return None
        return [[_row(completion) for completion in group] for group in self._begun()]

    def restore(self, rows: list[list[dict[str, Any]]] | None) -> None:
        """Takes back what :meth:`ahead` gave."""
        if rows is not None:
            groups = [[_completion(row) for row in group] for group in rows]
            self._begun = lambda: groups

    def _chosen(self, step: int) -> list[PromptIds]:
        return choose_prompts(self.prompts, step * self.count, self.count, self.seed)


def _row(completion: Completion) -> dict[str, Any]:
    return {
        "tokens": list(completion.tokens),
        "text": completion.text,
        "finished": completion.finished,
        "logprobs": None if completion.logprobs is None else completion.logprobs.tolist(),
        "version": completion.version,
    }


def _completion(row: dict[str, Any]) -> Completion:
    logprobs = None if row["logprobs"] is None else torch.tensor(row["logprobs"], dtype=torch.float32)
    return Completion(tuple(row["tokens"]), row["text"], row["finished"], logprobs, row["version"])
