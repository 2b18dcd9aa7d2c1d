"""The stages ``grpo`` and ``rloo``: TRL's trainers with every loss they offer, on our rollouts and rewards.

Of a group's answers, those that score above the others become likelier. GRPO (Shao et al. 2024) divides by the group's
deviation and clips ratios of tokens; RLOO (Ahmadian et al. 2024) takes the mean of the others as the baseline and
weighs whole answers. Neither needs a critic, nor, at ``beta: 0``, a reference.
"""

import logging
from typing import Any

from peft import PeftModel
from transformers import PreTrainedTokenizerBase
from trl import GRPOConfig, RLOOConfig

from alignment.data.prompts import split_prompts
from alignment.errors import StageError
from alignment.policy.grpo.metrics import GroupCallback, all_alarms
from alignment.policy.grpo.prompt_order import run_dataset, worker_places
from alignment.policy.grpo.trainer import (
    OurGRPOTrainer,
    OurRLOOTrainer,
    Rollouts,
    reward_stub,
    reward_weights,
)
from alignment.recipe.stages.grpo import GroupStage, GrpoStage, RlooStage
from alignment.records import Prompt
from alignment.reward.factory import build_rewards
from alignment.rollouts.factory import build_engine
from alignment.stage import StageContext, StageResult
from alignment.training.arguments import shared_arguments
from alignment.training.callback import StageCallback
from alignment.training.fit import fit
from alignment.training.policy import PolicyTraining, TrainingOutcome, begin_policy
from alignment.training.response_head import add_response_head
from alignment.training.row_counts import Counts, log_counts, sift_prompts

_log = logging.getLogger(__name__)


def run(settings: GrpoStage | RlooStage, context: StageContext) -> StageResult:
    """Trains ``settings.model`` on its rewards of its own answers to the training prompts.

    Raises StageError where no prompt is short enough, a reward model has another template, or a reward fails.
    """
    updates_per_step = settings.epochs * settings.minibatches
    training = begin_policy(settings, context, reference=True, updates_per_step=updates_per_step)
    prompts, counts = training_prompts(settings, context, training.tokenizer)
    log_counts(context, counts)
    _warn_of_other_minibatches(settings, context)
    rollouts = _rollouts(settings, context, training, prompts, updates_per_step)
    tables = context.checkpoints / "samples"  # not in the output, which a restart begins anew

    def make_trainer(callback: StageCallback) -> Any:
        return _trainer(settings, context, training, rollouts, callback)

    fitted = fit(
        training.policy,
        make_trainer,
        settings,
        context,
        callback=GroupCallback(context, settings, rollouts, tables),
        more_callbacks=(training.snapshots,),
        reference=True,
    )
    alarms = all_alarms(fitted.trainer.state.log_history)
    metrics = {
        "mean_loss": fitted.mean_loss,
        "prompts": float(len(prompts)),
        "alarms": float(len(alarms)),
    } | counts
    sampled = round(sum(length * settings.episodes for _step, length in fitted.curves["length"]))
    outcome = TrainingOutcome(fitted.curves, metrics, fitted.tokens, sampled, {"alarms.json": alarms}, tables)
    return training.finish(fitted.model, outcome)


def _rollouts(
    settings: GrpoStage | RlooStage,
    context: StageContext,
    training: PolicyTraining,
    prompts: list[Prompt],
    updates_per_step: int,
) -> Rollouts:
    policy, tokenizer = training.policy, training.tokenizer
    return Rollouts(
        engine=build_engine(context, policy, tokenizer),
        policy=policy,
        base=policy.get_base_model() if isinstance(policy, PeftModel) else policy,
        tokenizer=tokenizer,
        sampling=settings.sampling,
        rewards=build_rewards(settings.rewards, context, tokenizer),
        prompts=prompts,
        seed=context.run.seed,
        updates_per_step=updates_per_step,
        epochs=settings.epochs,
        per_prompt=settings.per_prompt,
        places=worker_places(settings.episodes // settings.per_prompt, settings.minibatches, context.workers),
        missing_eos_penalty=settings.missing_eos_penalty,
        dtype=context.run.model.dtype,
        rank=context.rank,
    )


def _warn_of_other_minibatches(settings: GroupStage, context: StageContext) -> None:
    """Says in the log where prompts do not fall evenly into several workers' minibatches (`worker_places`)."""
    uneven = settings.episodes % (context.workers * settings.minibatches * settings.per_prompt)
    if uneven and settings.minibatches > 1 and context.workers > 1 and context.rank == 0:
        _log.warning(
            "%s: minibatches are others than one worker's: give episodes (%d) a multiple of workers × minibatches × "
            "per_prompt (%d × %d × %d)",
            context.name, settings.episodes, context.workers, settings.minibatches, settings.per_prompt,
        )  # fmt: skip


def training_prompts(
    settings: GroupStage, context: StageContext, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[Prompt], Counts]:
    """The training prompts that are short enough, and how many rows are left out. Raises StageError where none is."""
    split = split_prompts(context.data["prompts"], context.run.held_out)
    longest = settings.max_prompt_length
    fitting, counts = sift_prompts(split.train, tokenizer, longest, split.duplicates)
    if not fitting:
        raise StageError(f"none of {len(split.train)} training prompts is at most max_prompt_length={longest} tokens")
    return fitting, counts


def group_arguments(settings: GroupStage, context: StageContext, weights: list[float]) -> dict[str, Any]:
    """The keyword arguments that GRPOConfig and RLOOConfig share."""
    per_generation = settings.episodes // settings.batch_size
    updates = settings.epochs * settings.minibatches
    return shared_arguments(settings, context) | {
        "max_steps": settings.steps * updates,
        "steps_per_generation": per_generation,
        "gradient_accumulation_steps": per_generation // settings.minibatches,
        "num_iterations": settings.epochs,
        "num_generations": settings.per_prompt,
        "max_completion_length": settings.sampling.max_new_tokens,
        "temperature": settings.sampling.temperature,
        "logging_steps": updates,
        "save_steps": settings.checkpoint_every * updates,  # only ever between two steps: answers are not kept
        "shuffle_dataset": False,
        "beta": settings.beta,
        "epsilon": settings.clip_low,
        "epsilon_high": settings.clip_high,
        "mask_truncated_completions": settings.mask_truncated,
        "reward_weights": weights,
        "router_aux_loss_coef": settings.router_loss,
    }


def _trainer(
    settings: GrpoStage | RlooStage,
    context: StageContext,
    training: PolicyTraining,
    rollouts: Rollouts,
    callback: StageCallback,
) -> OurGRPOTrainer | OurRLOOTrainer:
    weights = reward_weights(rollouts)
    shared = group_arguments(settings, context, list(weights.values()))
    rows = run_dataset(
        rollouts.prompts,
        steps=settings.steps,
        places=rollouts.places,
        seed=context.run.seed,
    )
    if settings.kind == "grpo":
        kind, arguments = OurGRPOTrainer, GRPOConfig(**shared, **_grpo_arguments(settings))
    else:
        kind = OurRLOOTrainer
        arguments = RLOOConfig(
            **shared, normalize_advantages=settings.normalize_advantages, reward_clip_range=settings.clip_rewards
        )
    trainer = kind(
        model=training.policy,
        reward_funcs=[reward_stub(name) for name in weights],
        args=arguments,
        train_dataset=rows,
        processing_class=training.tokenizer,
        callbacks=[callback],
    )
    for model in filter(None, (trainer.model, trainer.ref_model)):
        add_response_head(
            model,
            temperature=settings.sampling.temperature,
            statistics=False,
            entropy_gradient=bool(settings.entropy_weight()),
        )
    trainer.rollouts = rollouts
    return trainer


def _grpo_arguments(settings: GrpoStage) -> dict[str, Any]:
    positive, negative = settings.sapo_temperatures
    return {
        "loss_type": settings.loss,
        "scale_rewards": settings.scale_rewards,
        "importance_sampling_level": settings.importance_level,
        "multi_objective_aggregation": settings.aggregation,
        "delta": settings.delta,
        "top_entropy_quantile": settings.top_entropy,
        "entropy_coef": settings.entropy_coefficient,
        "sapo_temperature_pos": positive,
        "sapo_temperature_neg": negative,
    }
