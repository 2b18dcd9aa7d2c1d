"""The PPO stage: loads policy, reference, critic and reward model, trains, and writes the policy as an artifact."""

import copy
import json
import logging
from typing import Any

from peft import inject_adapter_in_model

from alignment.chat import render_prompt
from alignment.data.prompts import split_prompts
from alignment.distributed.fsdp import check_devices
from alignment.distributed.workers import Team
from alignment.durable_files import write_text
from alignment.errors import StageError
from alignment.models.adapters import base_of, is_adapter, lora_config
from alignment.models.device import pick_device
from alignment.models.encoders.architecture import is_encoder
from alignment.models.families.head import trunk_of
from alignment.policy.losses import kl_estimate
from alignment.policy.online.actor_critic import reference_of
from alignment.policy.online.batch import Experience
from alignment.policy.ppo.episode_reward import episode_reward
from alignment.policy.ppo.held_out_win_rate import Watch
from alignment.policy.ppo.trainer import PpoTrainer
from alignment.preferences.rubric import load_rubric
from alignment.preferences.simulated_raters import simulated_raters
from alignment.recipe.stages.ppo import PpoStage
from alignment.records import Prompt
from alignment.rollouts.distributed_engine import PushedEngine
from alignment.rollouts.engine import Engine, PromptIds
from alignment.rollouts.factory import team_engine
from alignment.stage import Progress, StageContext, StageResult
from alignment.training.curves import curves_of_steps
from alignment.training.policy import TrainingOutcome, begin_policy
from alignment.training.row_counts import Counts, log_counts, sift_prompts

_log = logging.getLogger(__name__)
SHOWN = 8  # answers in each sample table


def run(settings: PpoStage, context: StageContext) -> StageResult:
    """Trains ``settings.model`` against its reward model and reward functions on the training prompts.

    Raises StageError where no prompt is short enough, templates differ, or training goes wrong.
    """
    check_devices(context)
    training = begin_policy(settings, context, reference=True, masters=False)
    policy, tokenizer, start = training.policy, training.tokenizer, training.start
    reward_model, reward = episode_reward(settings, context, tokenizer)
    prompts, held_out, counts = _prompts(settings, context, tokenizer)
    critic = _critic(settings, policy, reward_model)  # before the reference adds its adapter
    if reward_model is not None:
        reward_model.to(pick_device(context.run.resources))
    engine = team_engine(settings, context, policy, tokenizer)
    if isinstance(engine, PushedEngine):
        engine.push(policy, 0)  # the start, of which the watch below asks
    trainer = PpoTrainer(
        settings,
        policy=policy,
        reference=reference_of(policy, start.path if is_adapter(start) else None, sharded=context.sharded),
        critic=critic,
        engine=engine,
        reward=reward,
        prompts=prompts,
        seed=context.run.seed,
        checkpoints=context.checkpoints,
        team=Team(context.rank, context.workers),
        sharded=context.sharded,
        preempted=context.preempted,
        saved=context.saved,
        other_engine=context.run.resources.vllm is not None,
    )
    # It samples from the start, which waits in main memory until the trainer has sharded it.
    trainer.watch = _watch(settings, context, engine, held_out)

    tables = context.checkpoints / "samples"  # not in the output, which a restart begins anew

    def on_step(step: int, metrics: dict[str, float], experience: Experience) -> None:
        state = trainer.state
        context.report(Progress(step, settings.steps, metrics, state.tokens_sampled + state.tokens_trained))
        due = step == 1 or step % settings.checkpoint_every == 0 or step == settings.steps
        if due and context.rank == 0:
            table = json.dumps(sample_table(experience), indent=1, ensure_ascii=False)
            write_text(tables / f"step-{step:06d}.json", table)
        training.snapshots.take(policy, step)

    with context.working():
        state = trainer.train(on_step=on_step)
    curves = curves_of_steps(enumerate(state.history, start=1))
    metrics = {"prompts": float(len(prompts)), "alarms": float(len(state.alarms))} | counts
    outcome = TrainingOutcome(
        curves, metrics, state.tokens_trained, state.tokens_sampled, {"alarms.json": state.alarms}, tables
    )
    return training.finish(policy, outcome)


def sample_table(experience: Experience) -> list[dict[str, Any]]:
    """The first ``SHOWN`` answers of a step with their figures, for the report."""
    kl = kl_estimate(experience.logprobs, experience.ref_logprobs, estimator="k1").sum(dim=1)
    return [
        {
            "prompt": episode.prompt.messages[-1].content,
            "answer": episode.completion.text,
            "score": float(experience.raw_scores[row]),
            "kl": float(kl[row]),
            "tokens": len(episode.completion.tokens),
            "finished": episode.completion.finished,
        }
        for row, episode in enumerate(experience.episodes[:SHOWN])
    ]


def _prompts(
    settings: PpoStage, context: StageContext, tokenizer: Any
) -> tuple[list[PromptIds], list[PromptIds], Counts]:
    """The training prompts and the held-out ones that are watched, those that are too long left out of both; and how
    many rows of the training prompts are left out."""
    longest = settings.max_prompt_length
    split = split_prompts(context.data["prompts"], context.run.held_out)

    def short(prompts: list[Prompt], kind: str, duplicates: int = 0) -> tuple[list[Prompt], Counts]:
        fitting, counts = sift_prompts(prompts, tokenizer, longest, duplicates)
        if counts["dropped"] and context.rank == 0:
            _log.warning(
                "%s: %d of %d %s prompts left out, longer than max_prompt_length=%d tokens",
                context.name, counts["dropped"], len(prompts), kind, longest,
            )  # fmt: skip
        return fitting, counts

    def rendered(prompts: list[Prompt]) -> list[PromptIds]:
        return [(prompt, tuple(render_prompt(tokenizer, prompt.messages))) for prompt in prompts]

    train, counts = short(split.train, "training", split.duplicates)
    log_counts(context, counts | {"dropped": 0.0})
    if not train:
        raise StageError(f"none of {len(split.train)} training prompts is at most max_prompt_length={longest} tokens")
    watched = sorted(split.held_out, key=lambda prompt: prompt.id) if settings.raters is not None else []
    return rendered(train), rendered(short(watched, "held-out")[0][: settings.watch_prompts]), counts


def _watch(settings: PpoStage, context: StageContext, engine: Engine, held_out: list[PromptIds]) -> Watch | None:
    """The raters' comparison with the start, where the recipe asks for one and there are prompts to ask."""
    if settings.raters is None:
        return None
    if not held_out:
        raise StageError(f"{context.name}: raters are to watch it, but no held-out prompt is short enough to ask")
    raters = simulated_raters(settings.raters, load_rubric(context.data["rubric"]), context.run.seed)
    return Watch(engine, held_out, raters, longest=settings.sampling.max_new_tokens, folder=context.checkpoints,
                 writes=context.rank == 0)  # fmt: skip


def _critic(settings: PpoStage, policy: Any, reward_model: Any) -> Any | None:
    """The value function's own trunk, or None where it shares the policy's."""
    if settings.critic == "shared":
        return None
    if settings.critic == "policy":
        return copy.deepcopy(trunk_of(base_of(policy)))
    if is_encoder(reward_model.config):
        raise StageError(f"{settings.reward} is an encoder, which values no token: set critic to policy or shared")
    trunk = copy.deepcopy(trunk_of(reward_model))
    return trunk if settings.lora is None else inject_adapter_in_model(lora_config(trunk, settings.lora), trunk)
