"""PPO for language models, from a policy, a reward and prompts, however these were loaded.

One step: sample, score, compare with the reference, estimate advantages, pass over it all a few times. The parts are
files of their own: `ppo_rollout`, `ppo_update`, `ppo_models`, `ppo_checks`, `ppo_monitor`, `ppo_checkpoint`.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alignment.distributed.workers import ALONE, Team
from alignment.policy.ppo.actor_critic import ActorCritic, Reference, check_head
from alignment.policy.ppo.batch import Experience
from alignment.policy.ppo.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from alignment.policy.ppo.experience import Reward, checked_scores, credit, make_experience
from alignment.policy.ppo.invariants import check_experience, check_first_update
from alignment.policy.ppo.kl_controller import KlController
from alignment.policy.ppo.master_adamw import MasterAdamW
from alignment.policy.ppo.metrics import alarms, experience_metrics, overoptimisation
from alignment.policy.ppo.sampler import EpisodeSampler
from alignment.policy.ppo.update import minibatches_of, update
from alignment.recipe.stages.ppo import PpoStage
from alignment.rollouts.engine import Engine, PromptIds
from alignment.stage import never, nothing

_log = logging.getLogger(__name__)
OnStep = Callable[[int, dict[str, float], Experience], None]


class PpoTrainer:
    """Trains ``policy`` in place.

    ``reference`` is a context that gives the frozen model; ``critic`` a trunk for the value function, or None for a
    head on the policy's own. Only parameters that require gradients are trained. ``checkpoints`` None keeps none.
    ``watch`` is asked every ``settings.watch_every`` steps for the policy's held-out win rate against its start. The
    workers of ``team`` train together: each makes some of every pass, and all come to the same weights, which are those
    of one alone up to the order of sums. Where they are ``sharded``, each of them holds a part of policy and critic
    (of a reference that is a copy, its maker sees to that). Where ``preempted`` says that one is about to be taken
    away, it saves at once; ``saved`` is told of each checkpoint, and may end the training. Raises StageError where the
    policy's head is not a plain matrix product.
    """

    def __init__(
        self,
        settings: PpoStage,
        *,
        policy: Any,
        reference: Reference,
        engine: Engine,
        reward: Reward,
        prompts: Sequence[PromptIds],
        critic: Any | None = None,
        seed: int = 0,
        checkpoints: Path | None = None,
        watch: Callable[[], float] | None = None,
        team: Team = ALONE,
        sharded: bool = False,
        preempted: Callable[[], bool] = never,
        saved: Callable[[], None] = nothing,
    ) -> None:
        check_head(policy.eval())
        self.settings, self.reference, self.engine, self.reward = settings, reference, engine, reward
        self.prompts, self.seed, self.checkpoints, self.watch = prompts, seed, checkpoints, watch
        self.team, self.draw = team, EpisodeSampler(engine, prompts, settings, seed=seed)
        self.dtype = policy.get_output_embeddings().weight.dtype
        self.actor = ActorCritic(policy, critic=critic, temperature=settings.sampling.temperature)
        if sharded:
            self.actor.shard()
        trainable = self.actor.trainable()
        self.optimizer = MasterAdamW(
            [
                ([p for name, p in trainable.items() if name.startswith("policy.")], settings.learning_rate),
                ([p for name, p in trainable.items() if not name.startswith("policy.")], settings.critic_learning_rate),
            ],
            total=settings.steps * settings.epochs * settings.minibatches,
            warmup=settings.warmup,
            schedule=settings.schedule,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
        )
        self.controller = KlController(settings.kl_coefficient, settings.kl_target, settings.kl_horizon)
        self.state = TrainingState()
        self.preempted, self.saved, self._warned = preempted, saved, False
        self._seconds: dict[str, float] = {}

    def train(self, *, stop_after: int | None = None, on_step: OnStep | None = None) -> TrainingState:
        """Goes on from the newest checkpoint to ``settings.steps`` (or ``stop_after``) steps.

        ``on_step`` is told the number of steps done, the newest step's metrics and its experience. Raises StageError
        where a step-0 invariant fails, the reward fails, or a gradient is not finite.
        """
        if self.checkpoints is not None and (restored := load_checkpoint(self.checkpoints, self.actor, self.optimizer)):
            self.state, self.controller = restored
            self.draw.restore(self.state.ahead)
        last = self.settings.steps if stop_after is None else min(stop_after, self.settings.steps)
        while self.state.step < last:
            metrics, experience = self._step()
            due = self.state.step % self.settings.checkpoint_every == 0 or self.state.step == last
            if not self._warned and self.preempted():
                self._warned = due = True
            if on_step is not None:  # before the checkpoint: a step that is not done again has been told of
                on_step(self.state.step, metrics, experience)
            if self.checkpoints is not None and due:
                self.state.ahead = self.draw.ahead()
                writes = self.team.rank == 0
                save_checkpoint(
                    self.checkpoints, self.state, self.actor, self.optimizer, self.controller, writes=writes
                )
                self.saved()
        return self.state

    def _step(self) -> tuple[dict[str, float], Experience]:
        settings, state = self.settings, self.state
        step, started, self._seconds = state.step, time.perf_counter(), {}
        policy = self.actor.policy
        with self._timed("sampling"):
            episodes = self.draw.take(policy, step)
        with self._timed("scoring"):
            scores = checked_scores(self.reward, episodes)
        state.score_scale.update(scores)
        scale = state.score_scale if settings.normalise_scores else None
        if step == 0:
            self.actor.start_values(float(credit(episodes, scores, settings, scale)[1].mean()))
        coefficient = self.controller.coefficient
        with self._timed("logprobs"):
            experience = make_experience(
                episodes, scores, self.actor, self.reference, settings, kl_coefficient=coefficient, team=self.team,
                scale=scale, minibatches=minibatches_of(settings, seed=self.seed, step=step),
            )  # fmt: skip
        metrics = experience_metrics(experience, kl_coefficient=coefficient) | getattr(self.reward, "means", {})
        if step == 0:
            check_experience(experience, self.dtype, same_engine=settings.importance_cap is None)
        self.draw.begin(policy, step + 1)
        with self._timed("training"):
            updated = update(
                experience, self.actor, self.optimizer, settings, seed=self.seed, step=step, team=self.team
            )
        if step == 0:
            check_first_update(updated.first, self.dtype, experience.mask.device)
        self.controller.update(metrics["kl"], len(episodes))
        metrics |= updated.metrics | self._rates(experience, updated.tokens, time.perf_counter() - started)
        if self.watch is not None and (step + 1) % settings.watch_every == 0:
            self.draw.push(policy, step + 1)
            rate = self.watch()
            metrics["held_out_win_rate"] = float(rate)
            state.held_out.append(list(getattr(rate, "outcomes", ())))
        state.step, state.position = step + 1, state.position + self.draw.count
        state.tokens_sampled += int(experience.mask.sum())
        state.tokens_trained += updated.tokens
        state.history.append(metrics)
        self._alarm()
        return metrics, experience

    def _alarm(self) -> None:
        """Says in the log, and keeps for the report, what the newest steps show; each kind of alarm once."""
        state = self.state
        watched = [metrics for metrics in state.history if "held_out_win_rate" in metrics]
        outcomes = state.held_out if len(state.held_out) == len(watched) and all(state.held_out) else None
        found = overoptimisation([m["score"] for m in watched], [m["held_out_win_rate"] for m in watched], outcomes)
        for alarm in [*alarms(state.history), *([] if found is None else [found])]:
            if alarm.split(":")[0] not in {known.split(": ")[1] for known in state.alarms}:
                state.alarms.append(f"step {state.step}: {alarm}")
                _log.warning("PPO step %d: %s", state.step, alarm)

    def _rates(self, experience: Experience, trained: int, seconds: float) -> dict[str, float]:
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
