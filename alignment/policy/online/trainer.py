"""The trainer of a policy on its own answers, however these are compared and learned from.

One step: sample, score, compare with the reference, estimate advantages, pass over it all a few times. What a method
has of its own (:mod:`alignment.policy.ppo.trainer`, :mod:`alignment.policy.grpo.trainer`) is what it makes of scored
answers, and the loss that it learns by.
"""

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import torch

from alignment.distributed.workers import ALONE, Team
from alignment.environments.episodes import EpisodePlayer
from alignment.policy.online.actor_critic import Actor
from alignment.policy.online.answers import Reward, checked_scores
from alignment.policy.online.batch import Episode
from alignment.policy.online.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from alignment.policy.online.kl_controller import KlController
from alignment.policy.online.master_adamw import MasterAdamW
from alignment.policy.online.off_policy import gap_alarm, gap_limit
from alignment.policy.online.sampler import EpisodeSampler
from alignment.policy.online.update import Update
from alignment.recipe.stages.online import OnlineStage
from alignment.rollouts.engine import Engine, PromptIds
from alignment.stage import never, nothing

_log = logging.getLogger(__name__)


class Drawn(Protocol):
    """What a method keeps of a step's answers: at least these, and which tokens of each row are there, (N, R)."""

    @property
    def episodes(self) -> list[Episode]: ...
    @property
    def mask(self) -> torch.Tensor: ...


Kept = TypeVar("Kept", bound=Drawn)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Where a trainer stands.

    The workers of ``team`` train together: each makes some of every pass, and all come to the same weights, which are
    those of one alone up to the order of sums. Where they are ``sharded``, each of them holds a part of what is trained
    (of a reference that is a copy, its maker sees to that). Where ``preempted`` says that one is about to be taken
    away, it saves at once; ``saved`` is told of each checkpoint, and may end the training. ``checkpoints`` None keeps
    none. ``other_engine``: not one of ours draws the answers. ``player`` plays episodes with the environment that
    answers the policy; None: an episode is one answer. ``name`` is what the log calls the training.
    """

    seed: int = 0
    checkpoints: Path | None = None
    team: Team = ALONE
    sharded: bool = False
    preempted: Callable[[], bool] = never
    saved: Callable[[], None] = nothing
    other_engine: bool = False
    player: EpisodePlayer | None = None
    name: str = "PPO"


class OnlineTrainer(ABC, Generic[Kept]):
    """Trains an actor in place; only parameters that require gradients are trained."""

    def __init__(
        self,
        settings: OnlineStage,
        actor: Actor,
        optimizer: Callable[[dict[str, torch.nn.Parameter]], MasterAdamW],
        controller: KlController,
        *,
        engine: Engine,
        reward: Reward,
        prompts: Sequence[PromptIds],
        around: Surroundings,
    ) -> None:
        self.actor, self.engine, self.reward, self.prompts = actor, engine, reward, prompts
        self.seed, self.checkpoints, self.team, self.around = around.seed, around.checkpoints, around.team, around
        self.draw = EpisodeSampler(engine, prompts, settings, seed=around.seed, player=around.player)
        self.dtype = actor.policy.get_output_embeddings().weight.dtype
        if around.sharded:
            actor.shard()
        self.optimizer = optimizer(actor.trainable())
        self.controller = controller
        self.state = TrainingState()
        self.cap = settings.weights_cap(other_engine=around.other_engine)
        self.gap_limit = gap_limit(settings, self.dtype, self.cap)
        self._stage, self._warned = settings, False
        self._seconds: dict[str, float] = {}

    def train(
        self, *, stop_after: int | None = None, on_step: Callable[[int, dict[str, float], Kept], None] | None = None
    ) -> TrainingState:
        """Goes on from the newest checkpoint to ``settings.steps`` (or ``stop_after``) steps.

        ``on_step`` is told the number of steps done, the newest step's metrics and its experience. Raises StageError
        where a step-0 invariant fails, the reward fails, the sampler is too far from the policy, or a gradient is not
        finite.
        """
        stage = self._stage
        if self.checkpoints is not None and (restored := load_checkpoint(self.checkpoints, self.actor, self.optimizer)):
            self.state, self.controller = restored
            self.draw.restore(self.state.ahead, self.state.step)
            if self.draw.curriculum is not None:
                self.draw.curriculum.rates, self.draw.curriculum.position = self.state.pass_rates, self.state.position
        last = stage.steps if stop_after is None else min(stop_after, stage.steps)
        while self.state.step < last:
            metrics, experience = self._step()
            due = self.state.step % stage.checkpoint_every == 0 or self.state.step == last
            if not self._warned and self.around.preempted():
                self._warned = due = True
            if on_step is not None:  # before the checkpoint: a step that is not done again has been told of
                on_step(self.state.step, metrics, experience)
            if self.checkpoints is not None and due:
                self.state.ahead = self.draw.ahead()
                writes = self.team.rank == 0
                save_checkpoint(
                    self.checkpoints, self.state, self.actor, self.optimizer, self.controller, writes=writes
                )
                self.around.saved()
        return self.state

    @abstractmethod
    def experience_of(self, episodes: list[Episode], scores: torch.Tensor, step: int) -> Kept:
        """What is learned from: scored episodes, compared with each other, a critic's values, or the reference."""

    @abstractmethod
    def update_with(self, experience: Kept, step: int) -> Update:
        """Passes over the experience. Raises StageError where step 0 or the sampler's distance is not as it must be."""

    @abstractmethod
    def metrics_of(self, experience: Kept) -> dict[str, float]:
        """A step's figures, as the policy was before its update."""

    @abstractmethod
    def alarms_of(self, history: list[dict[str, float]]) -> list[str]:
        """The alarms that the newest steps raise, each beginning with its name."""

    def completed(self, episodes: list[Episode], scores: torch.Tensor, step: int) -> tuple[list[Episode], torch.Tensor]:
        """The scored episodes that a step learns from: as they are, or some of them drawn once more."""
        return episodes, scores

    def measured(self, episodes: list[Episode], scores: torch.Tensor) -> None:
        """What is kept of a step's answers to its own prompts, before some are drawn once more."""

    def after_update(self, metrics: dict[str, float], step: int) -> None:
        """What follows a step's update; it may add to its metrics."""

    def _step(self) -> tuple[dict[str, float], Kept]:
        state = self.state
        step, started, self._seconds = state.step, time.perf_counter(), {}
        policy = self.actor.policy
        with self._timed("sampling"):
            episodes = self.draw.take(policy, step)
        with self._timed("scoring"):
            scores = checked_scores(self.reward, episodes)
            self.measured(episodes, scores)
            episodes, scores = self.completed(episodes, scores, step)
        state.score_scale.update(scores)
        with self._timed("logprobs"):
            experience = self.experience_of(episodes, scores, step)
        self.draw.begin(policy, step + 1)
        with self._timed("training"):
            updated = self.update_with(experience, step)
        metrics = self.metrics_of(experience)
        metrics |= updated.metrics | self._rates(experience, updated.tokens, time.perf_counter() - started)
        self.after_update(metrics, step)
        curriculum = self.draw.curriculum
        state.step = step + 1
        state.position = state.position + self.draw.count if curriculum is None else curriculum.position
        state.pass_rates = {} if curriculum is None else curriculum.rates
        state.tokens_sampled += int(experience.mask.sum())
        state.tokens_trained += updated.tokens
        state.history.append(metrics)
        self._alarm()
        return metrics, experience

    def _alarm(self) -> None:
        """Says in the log, and keeps for the report, what the newest steps show; each kind of alarm once."""
        state = self.state
        for alarm in [*self.alarms_of(state.history), *gap_alarm(state.history[-1], self.gap_limit)]:
            if alarm.split(":")[0] not in {known.split(": ")[1] for known in state.alarms}:
                state.alarms.append(f"step {state.step}: {alarm}")
                _log.warning("%s step %d: %s", self.around.name, state.step, alarm)

    def _rates(self, experience: Kept, trained: int, seconds: float) -> dict[str, float]:
        """Seconds of each part, and tokens per second of sampling and of training."""
        sampled = int(experience.mask.sum())
        rates = {f"seconds_{name}": value for name, value in self._seconds.items()}
        rates["seconds"] = seconds
        rates["tokens_per_second_sampling"] = sampled / self._seconds["sampling"]
        rates["tokens_per_second_training"] = trained / self._seconds["training"]
        rates["episodes_per_second"] = len(experience.episodes) / seconds
        return rates

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] = time.perf_counter() - started
