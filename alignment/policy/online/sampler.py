"""Where a step's answers come from: drawn when they are wanted, or steps ahead, while the policy trains.

Ahead (``max_staleness: k``) the rollout workers draw the answers of the k-th next step with the weights as they are
before this step's update, so that they always have k steps to draw. Importance weights make up for the updates in
between, and an answer that is staler than that is refused.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch

from alignment.environments.episodes import EpisodePlayer
from alignment.policy.online.answers import asked, choose_prompts, environment_seeds, episodes_of, refuse_stale
from alignment.policy.online.batch import Episode
from alignment.policy.online.curriculum import Curriculum
from alignment.recipe.stages.online import OnlineStage
from alignment.rollouts.distributed_engine import PushedEngine
from alignment.rollouts.engine import Completion, Engine, Groups, PromptIds

REDRAWS = 10  # attempts in a step at most, each of which has prompts of its own


class EpisodeSampler:
    """The answers of each step in turn. A version of the weights is named by the number of steps that made it."""

    def __init__(
        self,
        engine: Engine,
        prompts: Sequence[PromptIds],
        settings: OnlineStage,
        *,
        seed: int,
        player: EpisodePlayer | None = None,
    ) -> None:
        self.engine, self.prompts, self.settings, self.seed, self.player = engine, prompts, settings, seed, player
        self.count = settings.episodes // settings.per_prompt  # prompts of a step
        self.curriculum: Curriculum | None = None  # who chooses a step's prompts in place of the plain stream
        self._begun: dict[int, Callable[[], Groups]] = {}  # by step, those that are drawn ahead

    def push(self, policy: Any, version: int) -> None:
        """Has the engine sample from the policy as it is, where its weights are elsewhere."""
        if isinstance(self.engine, PushedEngine):
            self.engine.push(policy, version)

    def take(self, policy: Any, step: int) -> list[Episode]:
        """The episodes of ``step`` (from 0). Raises StageError where one is too stale, or has no tokens."""
        chosen = self._chosen(step)
        begun = self._begun.pop(step, None)
        if begun is None:
            self.push(policy, step)
            episodes = self._drawn(chosen, step)
        else:
            episodes = episodes_of(chosen, begun())
        refuse_stale(episodes, step, self.settings.max_staleness)
        return episodes

    def again(self, policy: Any, step: int, attempt: int, count: int) -> list[Episode]:
        """Answers to ``count`` further prompts in a step, from beyond all that the steps ask; attempts count from 1."""
        settings = self.settings
        first = (settings.steps + step * REDRAWS + attempt) * self.count
        chosen = choose_prompts(self.prompts, first, count, self.seed)
        self.push(policy, step)
        episodes = self._drawn(chosen, f"{step}, attempt {attempt}")
        refuse_stale(episodes, step, settings.max_staleness)
        return episodes

    def begin(self, policy: Any, step: int) -> None:
        """Has the steps from ``step``, the next one, drawn ahead with the policy as it is before this one's update."""
        if not isinstance(self.engine, PushedEngine):
            return
        last = min(step + self.settings.max_staleness, self.settings.steps)
        for ahead in range(step, last):
            if ahead not in self._begun:
                self.engine.push(policy, step - 1)
                begun = self.engine.begin(**asked(self._chosen(ahead), self.settings, seed=self.seed, step=ahead))
                self._begun[ahead] = cache(begun)  # may be wanted twice: by a checkpoint, and by the step

    def ahead(self) -> list[list[list[dict[str, Any]]]] | None:
        """What is drawn ahead, step by step, for a checkpoint (waits until it is drawn); None where nothing is."""
        if not self._begun:
            return None
        return [
            [[_row(completion) for completion in group] for group in self._begun[step]()]
            for step in sorted(self._begun)
        ]

    def restore(self, rows: list[list[list[dict[str, Any]]]] | None, step: int) -> None:
        """Takes back what :meth:`ahead` gave, before the step ``step``, the first that was drawn ahead."""
        for place, groups in enumerate(rows or ()):
            completions = [[_completion(row) for row in group] for group in groups]
            self._begun[step + place] = lambda completions=completions: completions  # type: ignore[misc]

    def _drawn(self, chosen: Sequence[PromptIds], step: int | str) -> list[Episode]:
        """Answers to the prompts, or episodes with the environment that answers back."""
        options = asked(chosen, self.settings, seed=self.seed, step=step)
        if self.player is None:
            return episodes_of(chosen, self.engine.generate(**options))
        each = [prompt for prompt in chosen for _ in range(self.settings.per_prompt)]
        seeds = environment_seeds(len(chosen), self.settings, seed=self.seed, step=step)
        played = self.player.play(
            self.engine, each, sampling=options["sampling"], seeds=options["seeds"], environment_seeds=seeds
        )
        return [
            Episode(prompt, ids, one.completion, one.drawn_mask, one.turns, one.reward)
            for (prompt, ids), one in zip(each, played, strict=True)
        ]

    def _chosen(self, step: int) -> list[PromptIds]:
        if self.curriculum is not None:
            return self.curriculum.take(self.count)
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
