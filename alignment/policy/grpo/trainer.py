"""GRPO and RLOO on the trainer of all policies that learn from their own answers."""

from collections.abc import Sequence
from typing import Any

import torch

from alignment.policy.grpo.experience import GroupExperience, make_experience, without_spread
from alignment.policy.grpo.metrics import group_alarms, group_metrics
from alignment.policy.grpo.update import consecutive, update
from alignment.policy.online.actor_critic import Actor, Reference
from alignment.policy.online.answers import checked_scores
from alignment.policy.online.batch import Episode
from alignment.policy.online.curriculum import Curriculum
from alignment.policy.online.episode_reward import EpisodeReward
from alignment.policy.online.invariants import check_experience, check_first_update
from alignment.policy.online.kl_controller import KlController
from alignment.policy.online.master_adamw import MasterAdamW
from alignment.policy.online.off_policy import check_gap, gap_metrics
from alignment.policy.online.trainer import OnlineTrainer, Surroundings
from alignment.policy.online.update import Update
from alignment.recipe.stages.grpo import GrpoStage, RlooStage
from alignment.rollouts.engine import Engine, PromptIds

ADAM_EPSILON = 1e-8  # PyTorch's, and TRL's for these methods


class GroupTrainer(OnlineTrainer[GroupExperience]):
    """Trains ``policy`` in place. ``reference`` gives what it started from, None where no KL is asked for."""

    def __init__(
        self,
        settings: GrpoStage | RlooStage,
        *,
        policy: Any,
        reference: Reference | None,
        engine: Engine,
        reward: EpisodeReward,
        prompts: Sequence[PromptIds],
        around: Surroundings,
    ) -> None:
        self.settings, self.reference, self.rewards = settings, reference, reward
        self.redrawn, self.pass_rate = 0, 0.0  # groups drawn once more, and answers that passed, of the newest step
        actor = Actor(
            policy,
            temperature=settings.sampling.temperature,
            trained_entropy=settings.entropy_weight() > 0,
        )
        super().__init__(
            settings,
            actor,
            self._optimizer,
            KlController(settings.beta),
            engine=engine,
            reward=reward,
            prompts=prompts,
            around=around,
        )
        if settings.difficulty is not None:
            self.draw.curriculum = Curriculum(prompts, settings.difficulty, seed=around.seed)

    def _optimizer(self, trainable: dict[str, torch.nn.Parameter]) -> MasterAdamW:
        settings = self.settings
        return MasterAdamW(
            [(list(trainable.values()), settings.learning_rate)],
            total=settings.steps * settings.epochs * settings.minibatches,
            warmup=settings.warmup,
            schedule=settings.schedule,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            epsilon=ADAM_EPSILON,
        )

    def measured(self, episodes: list[Episode], scores: torch.Tensor) -> None:
        """The pass rate of each prompt, where a curriculum goes by it."""
        size, curriculum = self.settings.per_prompt, self.draw.curriculum
        if curriculum is not None:
            curriculum.measure([one.prompt.id for one in episodes[::size]], scores.view(-1, size).tolist())
            self.pass_rate = sum(curriculum.rates[one.prompt.id] for one in episodes[::size]) / self.draw.count

    def completed(self, episodes: list[Episode], scores: torch.Tensor, step: int) -> tuple[list[Episode], torch.Tensor]:
        """With ``redraws``, groups without spread give way to answers to further prompts."""
        size, columns, self.redrawn = self.settings.per_prompt, self.rewards.scores, 0
        for attempt in range(1, (self.settings.redraws or 0) + 1):
            flat = without_spread(scores, size).nonzero().flatten().tolist()
            if not flat:
                break
            drawn = self.draw.again(self.actor.policy, step, attempt, len(flat))
            found = checked_scores(self.reward, drawn)
            for place, group in enumerate(flat):
                old, new = slice(group * size, (group + 1) * size), slice(place * size, (place + 1) * size)
                self.state.tokens_sampled += sum(episode.drawn_tokens for episode in episodes[old])
                episodes[old], scores[old] = drawn[new], found[new]
                for name, column in columns.items():
                    column[old] = self.rewards.scores[name][new]
            self.redrawn += len(flat)
        self.rewards.keep(columns)
        return episodes, scores

    def experience_of(self, episodes: list[Episode], scores: torch.Tensor, step: int) -> GroupExperience:
        """Advantages over the other answers to each prompt: see :func:`make_experience`."""
        weights = self.rewards.weights
        experience = make_experience(
            episodes, scores, self.rewards.scores, weights, self.actor, self.reference, self.settings,
            deviation=self.state.score_scale.deviation, minibatches=consecutive(self.settings), team=self.team,
        )  # fmt: skip
        if not experience.fresh:
            self._check(experience, step)
        return experience

    def update_with(self, experience: GroupExperience, step: int) -> Update:
        """See :func:`alignment.policy.grpo.update.update`; in the first step, before any change, every ratio is 1."""

        def before_step() -> None:
            if experience.fresh:  # the pass that trains was the first
                self.team.add([experience.logprobs, experience.entropy])
                self._check(experience, step)

        rate = float(self.optimizer.scheduler.get_last_lr()[0])
        updated = update(
            experience, self.actor, self.optimizer, self.settings, cap=self.cap, step=step, team=self.team,
            before_step=before_step,
        )  # fmt: skip
        if step == 0:
            check_first_update(updated.first, self.dtype, experience.mask.device)
        updated.metrics["grad_norm"] = updated.metrics.pop("gradient_norm")
        updated.metrics["learning_rate"] = rate
        del updated.metrics["stopped_early"]
        return updated

    def _check(self, experience: GroupExperience, step: int) -> None:
        if step == 0:
            check_experience(experience, self.dtype, same_engine=self.cap is None)
        gaps = gap_metrics(experience.logprobs, experience.sampling_logprobs, experience.mask)
        check_gap(gaps, self.gap_limit, step)

    def metrics_of(self, experience: GroupExperience) -> dict[str, float]:
        """See :func:`alignment.policy.grpo.metrics.group_metrics`."""
        redrawn = {} if self.settings.redraws is None else {"groups_redrawn": float(self.redrawn)}
        curriculum = self.draw.curriculum
        chosen = {} if curriculum is None else {
            "pass_rate": self.pass_rate, "prompts_passed_over": float(curriculum.passed_over),
        }  # fmt: skip
        return group_metrics(experience, self.settings) | self.rewards.means | redrawn | chosen

    def alarms_of(self, history: list[dict[str, float]]) -> list[str]:
        """The known pathologies, and groups that have nothing to learn from."""
        return group_alarms(history)
