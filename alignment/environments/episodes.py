"""Episodes of several turns: a policy answers an environment until it is done, or a limit is reached.

An episode's tokens are the prompt's, then those of each answer as they were drawn, and between two answers those of the
observation as the chat template writes it. Tokens are appended, never rendered again: the policy is trained on exactly
what it saw, however its text would be tokenised. A mask says which tokens it drew; only these are learned.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from alignment.chat import render_observation
from alignment.environments.process import EnvironmentProcess
from alignment.errors import StageError
from alignment.recipe.stages.environment import AnyEnvironment
from alignment.records import EpisodeTurn, Message, Prompt, Sampling
from alignment.rollouts.engine import Completion, Engine, PromptIds
from alignment.rollouts.seeds import derived_seed


@dataclass(frozen=True, slots=True)
class PlayedEpisode:
    """What followed a prompt.

    Attributes:
        completion: all tokens after the prompt; ``text`` is the last answer's, ``finished`` says whether the
            environment ended the episode, and ``logprobs`` are 0 where the policy drew nothing.
        drawn_mask: which of its tokens the policy drew.
        turns: answers and observations in their order.
        reward: the sum of the environment's.
    """

    completion: Completion
    drawn_mask: tuple[bool, ...]
    turns: tuple[EpisodeTurn, ...]
    reward: float


@dataclass(slots=True)
class _Episode:
    """An episode on its way."""

    prompt: Prompt
    prompt_ids: tuple[int, ...]
    tokens: list[int] = field(default_factory=list)
    drawn: list[bool] = field(default_factory=list)
    logprobs: list[torch.Tensor] | None = field(default_factory=list)  # None: the engine does not say
    turns: list[EpisodeTurn] = field(default_factory=list)
    text: str = ""
    answers: int = 0
    reward: float = 0.0
    finished: bool = False
    ended: bool = False

    def append(self, tokens: Sequence[int], logprobs: torch.Tensor | None, *, drawn: bool) -> None:
        self.tokens += tokens
        self.drawn += [drawn] * len(tokens)
        if logprobs is None:
            self.logprobs = None
        elif self.logprobs is not None:
            self.logprobs.append(logprobs)

    def played(self) -> PlayedEpisode:
        logprobs = None if self.logprobs is None else torch.cat(self.logprobs)
        completion = Completion(tuple(self.tokens), self.text, self.finished, logprobs)
        return PlayedEpisode(completion, tuple(self.drawn), tuple(self.turns), self.reward)


class EpisodePlayer:
    """Plays episodes with one stage's environments. ``tokenizer`` is the policies'."""

    def __init__(self, environment: EnvironmentProcess, tokenizer: Any) -> None:
        self.environment, self.tokenizer = environment, tokenizer

    @property
    def settings(self) -> AnyEnvironment:
        return self.environment.settings

    def play(
        self,
        engine: Engine,
        prompts: Sequence[PromptIds],
        *,
        sampling: Sampling,
        seeds: Sequence[int],
        environment_seeds: Sequence[int],
    ) -> list[PlayedEpisode]:
        """One episode for each of ``prompts``, in their order; equal prompts are read once where the engine can.

        What an episode draws depends on its own seed and its prompt alone: turn for turn all episodes that are not
        done are drawn together, and each turn has a seed of its own. ``environment_seeds`` are the environments'.

        Raises StageError where an environment fails, or an engine gives an answer without tokens.
        """
        episodes = [_Episode(prompt, ids) for prompt, ids in prompts]
        for place, (episode, seed) in enumerate(zip(episodes, environment_seeds, strict=True)):
            self.environment.reset(place, episode.prompt, seed)
        for turn in range(self.settings.max_turns):
            active = [place for place, episode in enumerate(episodes) if not episode.ended]
            if not active:
                break
            asked = [(*episodes[place].prompt_ids, *episodes[place].tokens) for place in active]
            own = [derived_seed(seeds[place], "turn", turn) for place in active]
            groups = engine.generate(asked, sampling=sampling, seeds=own)
            for place, (completion,) in zip(active, groups, strict=True):
                self._take(place, episodes[place], completion)
        return [episode.played() for episode in episodes]

    def _take(self, place: int, episode: _Episode, completion: Completion) -> None:
        """Appends an answer, and what comes of it."""
        if not completion.tokens:
            raise StageError("the engine returned an answer without tokens")
        settings = self.settings
        room = settings.max_tokens - len(episode.tokens)
        tokens, logprobs = completion.tokens[:room], completion.logprobs
        episode.append(tokens, None if logprobs is None else logprobs[:room], drawn=True)
        whole = completion.finished and len(tokens) == len(completion.tokens)
        episode.text = completion.text if whole else self._decoded(tokens)
        episode.answers += 1
        if not whole:
            episode.turns.append(EpisodeTurn(role="assistant", content=episode.text))
            episode.ended = True
            return
        step = self.environment.step(place, episode.prompt, episode.text)
        episode.reward += step.reward
        episode.turns.append(EpisodeTurn(role="assistant", content=episode.text, reward=step.reward))
        if step.observation or not step.done:
            episode.turns.append(EpisodeTurn(role=settings.role, content=step.observation))
        episode.finished = step.done
        episode.ended = step.done or episode.answers == settings.max_turns or not self._told(episode, step.observation)

    def _told(self, episode: _Episode, observation: str) -> bool:
        """Appends an observation where it leaves room for another answer."""
        message = Message(role=self.settings.role, content=observation)
        try:
            ids = render_observation(self.tokenizer, episode.prompt.messages, message)
        except Exception as error:  # a template may raise anything
            problem = f"the chat template cannot write its observation as a message of the {message.role}: {error}"
            raise StageError(f"the environment {self.environment.name}: {problem}; set environment.role") from error
        if len(episode.tokens) + len(ids) >= self.settings.max_tokens:
            return False
        episode.append(ids, None if episode.logprobs is None else torch.zeros(len(ids)), drawn=False)
        return True

    def _decoded(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))
