"""A step's answers: which prompts are asked, what an engine is asked for, and what a reward says of what it drew."""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import torch

from alignment.distributed.workers import LostWorkerError
from alignment.errors import StageError
from alignment.policy.online.batch import Episode
from alignment.recipe.stages.online import OnlineStage
from alignment.rollouts.engine import Engine, Groups, PromptIds
from alignment.rollouts.seeds import derived_seed

Reward: TypeAlias = Callable[[Sequence[Episode]], Sequence[float]]
"""Scores episodes, in their order; one finite number each."""


def choose_prompts(prompts: Sequence[PromptIds], first: int, count: int, seed: int) -> list[PromptIds]:
    """``count`` prompts from position ``first`` of an endless stream: every pass over the data has its own order."""
    size = len(prompts)
    turns = (divmod(position, size) for position in range(first, first + count))
    return [prompts[_order(size, seed, turn)[place]] for turn, place in turns]


@lru_cache(maxsize=2)  # a step may end one pass and begin the next
def _order(size: int, seed: int, turn: int) -> list[int]:
    """The order of one pass over ``size`` prompts; it is drawn once a pass, not once a prompt."""
    generator = torch.Generator().manual_seed(derived_seed(seed, "order", turn))
    return torch.randperm(size, generator=generator).tolist()


def asked(prompts: Sequence[PromptIds], settings: OnlineStage, *, seed: int, step: int | str) -> dict[str, Any]:
    """What an engine is asked for a step's answers: a draw depends on the seed, the step and its place alone."""
    seeds = [derived_seed(seed, "answer", step, index) for index in range(len(prompts) * settings.per_prompt)]
    ids = [ids for _prompt, ids in prompts]
    return {"prompts": ids, "per_prompt": settings.per_prompt, "sampling": settings.sampling, "seeds": seeds}


def episodes_of(prompts: Sequence[PromptIds], groups: Groups) -> list[Episode]:
    """The answers as episodes. Raises StageError where the engine gave one without tokens."""
    episodes = [
        Episode(prompt, ids, completion)
        for (prompt, ids), group in zip(prompts, groups, strict=True)
        for completion in group
    ]
    if not all(episode.completion.tokens for episode in episodes):
        raise StageError("the engine returned an answer without tokens")
    return episodes


def environment_seeds(count: int, settings: OnlineStage, *, seed: int, step: int | str) -> list[int]:
    """A seed for the environment of each answer to ``count`` prompts: the same for all answers to one."""
    own = [derived_seed(seed, "environment", step, index) for index in range(count)]
    return [one for one in own for _ in range(settings.per_prompt)]


def sample(
    engine: Engine, prompts: Sequence[PromptIds], settings: OnlineStage, *, seed: int, step: int
) -> list[Episode]:
    """``settings.per_prompt`` episodes for each prompt. Raises StageError where the engine gives no tokens at all."""
    return episodes_of(prompts, engine.generate(**asked(prompts, settings, seed=seed, step=step)))


def refuse_stale(episodes: Sequence[Episode], version: int, bound: int) -> None:
    """Raises StageError where an answer was drawn with weights more than ``bound`` updates behind ``version``."""
    for episode in episodes:
        drawn = episode.completion.version
        if drawn is not None and not 0 <= version - drawn <= bound:
            raise StageError(
                f"an answer was drawn with weights of version {drawn}, and the policy is at version {version}: "
                f"more than max_staleness={bound} behind"
            )


def checked_scores(reward: Reward, episodes: Sequence[Episode]) -> torch.Tensor:
    """(N,) float32 scores. Raises StageError, naming the prompt and the answer, where the reward fails at its task."""
    try:
        scores = [float(score) for score in reward(episodes)]
    except LostWorkerError:
        raise
    except Exception as error:
        raise StageError(f"the reward failed with {type(error).__name__}: {error}; {_shown(episodes[0])}") from error
    if len(scores) != len(episodes):
        raise StageError(f"the reward gave {len(scores)} scores for {len(episodes)} answers; {_shown(episodes[0])}")
    for episode, score in zip(episodes, scores, strict=True):
        if not math.isfinite(score):
            raise StageError(f"the reward gave {score}; {_shown(episode)}")
    return torch.tensor(scores, dtype=torch.float32)


def _shown(episode: Episode) -> str:
    return f"prompt {episode.prompt.messages[-1].content!r}, answer {episode.completion.text!r}"
