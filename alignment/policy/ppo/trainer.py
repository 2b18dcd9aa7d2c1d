"""PPO for language models, from a policy, a reward and prompts, however these were loaded."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from alignment.distributed.workers import ALONE, Team
from alignment.policy.alarms import alarms
from alignment.policy.online.actor_critic import ActorCritic, Reference, check_head
from alignment.policy.online.answers import Reward
from alignment.policy.online.batch import Episode, Experience
from alignment.policy.online.invariants import check_experience, check_first_update
from alignment.policy.online.kl_controller import KlController
from alignment.policy.online.master_adamw import MasterAdamW
from alignment.policy.online.off_policy import check_gap, gap_metrics
from alignment.policy.online.trainer import OnlineTrainer, Surroundings
from alignment.policy.online.update import Update
from alignment.policy.ppo.experience import credit, make_experience
from alignment.policy.ppo.metrics import experience_metrics, overoptimisation
from alignment.policy.ppo.update import minibatches_of, update
from alignment.recipe.stages.ppo import PpoStage
from alignment.rollouts.engine import Engine, PromptIds
from alignment.stage import never, nothing


class PpoTrainer(OnlineTrainer[Experience]):
    """Trains ``policy`` in place.

    ``reference`` is a context that gives the frozen model; ``critic`` a trunk for the value function, or None for a
    head on the policy's own. ``watch`` is asked every ``settings.watch_every`` steps for the policy's held-out win rate
    against its start. The rest is said of :class:`~alignment.policy.online.trainer.Surroundings`. Raises StageError
    where the policy's head is not a plain matrix product.
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
        other_engine: bool = False,
    ) -> None:
        check_head(policy.eval())
        self.settings, self.reference, self.watch = settings, reference, watch
        self.values = ActorCritic(policy, critic=critic, temperature=settings.sampling.temperature)
        super().__init__(
            settings,
            self.values,
            self._optimizer,
            KlController(settings.kl_coefficient, settings.kl_target, settings.kl_horizon),
            engine=engine,
            reward=reward,
            prompts=prompts,
            around=Surroundings(seed, checkpoints, team, sharded, preempted, saved, other_engine),
        )

    def _optimizer(self, trainable: dict[str, torch.nn.Parameter]) -> MasterAdamW:
        settings = self.settings
        return MasterAdamW(
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

    def experience_of(self, episodes: list[Episode], scores: torch.Tensor, step: int) -> Experience:
        """Values, KL penalties and generalised advantages: see :func:`make_experience`."""
        settings, state = self.settings, self.state
        scale = state.score_scale if settings.normalise_scores else None
        if step == 0:
            self.values.start_values(float(credit(episodes, scores, settings, scale)[1].mean()))
        experience = make_experience(
            episodes, scores, self.values, self.reference, settings, kl_coefficient=self.controller.coefficient,
            team=self.team, scale=scale, minibatches=minibatches_of(settings, seed=self.seed, step=step),
            other_engine=self.around.other_engine,
        )  # fmt: skip
        if step == 0:
            check_experience(experience, self.dtype, same_engine=self.cap is None)
        gaps = gap_metrics(experience.logprobs, experience.sampling_logprobs, experience.mask)
        check_gap(gaps, self.gap_limit, step)
        return experience

    def update_with(self, experience: Experience, step: int) -> Update:
        """See :func:`alignment.policy.ppo.update.update`; in the first step, before any change, every ratio is 1."""
        updated = update(
            experience, self.values, self.optimizer, self.settings, seed=self.seed, step=step, team=self.team
        )
        if step == 0:
            check_first_update(updated.first, self.dtype, experience.mask.device)
        return updated

    def metrics_of(self, experience: Experience) -> dict[str, float]:
        """See :func:`alignment.policy.ppo.metrics.experience_metrics`."""
        coefficient = self.controller.coefficient
        return experience_metrics(experience, kl_coefficient=coefficient) | getattr(self.reward, "means", {})

    def after_update(self, metrics: dict[str, float], step: int) -> None:
        """Steers the KL coefficient, and now and then asks for the held-out win rate."""
        self.controller.update(metrics["kl"], self.settings.episodes)
        if self.watch is not None and (step + 1) % self.settings.watch_every == 0:
            self.draw.push(self.actor.policy, step + 1)
            rate = self.watch()
            metrics["held_out_win_rate"] = float(rate)
            self.state.held_out.append(list(getattr(rate, "outcomes", ())))

    def alarms_of(self, history: list[dict[str, float]]) -> list[str]:
        """The known pathologies, and a score that rises while the held-out win rate falls."""
        held_out = self.state.held_out
        watched = [metrics for metrics in history if "held_out_win_rate" in metrics]
        outcomes = held_out if len(held_out) == len(watched) and all(held_out) else None
        found = overoptimisation([m["score"] for m in watched], [m["held_out_win_rate"] for m in watched], outcomes)
        return [*alarms(history), *([] if found is None else [found])]
