"""Direct preference optimisation: TRL's trainer, with every loss it offers, on pairs that we tokenised.

The reference costs no second model where LoRA is on: it is the base with the adapter disabled, or, where the policy
already is an adapter (after SFT), a frozen copy of that adapter. What is kept small: the (tokens × vocabulary) logits,
which are computed in chunks.
"""

from collections.abc import Mapping
from typing import Any

from datasets import Dataset
from peft import PeftModel
from trl import DPOConfig

from alignment.distributed.accumulation import Units, row_count
from alignment.recipe.stages.preference.dpo import DpoStage
from alignment.stage import StageContext, StageResult
from alignment.training.arguments import trainer_arguments
from alignment.training.callback import StageCallback
from alignment.training.fit import fit
from alignment.training.invariants import check_first_dpo_step
from alignment.training.policy import PolicyTraining, TrainingOutcome, begin_policy
from alignment.training.preference.dpo_trainer import (
    TokenisedDPOTrainer,
    add_heads,
    chosen_token_count,
    computed_beforehand,
    frozen_start,
)
from alignment.training.preference.pairs import read_training_pairs
from alignment.training.preference.reference_refresh import ReferenceRefresh


def run(settings: DpoStage, context: StageContext) -> StageResult:
    """Trains ``settings.model`` on preference pairs. Raises StageError where no pair is to learn from."""
    training = begin_policy(settings, context, reference=True)
    pairs = read_training_pairs(settings, context, training.tokenizer)

    def make_trainer(callback: StageCallback) -> Any:
        return _trainer(settings, context, training, Dataset.from_list(pairs.rows), callback)

    def first_step(metrics: Mapping[str, float]) -> None:
        terms: dict[str, float] = dict(zip(settings.losses(), settings.weights(), strict=True))
        check_first_dpo_step(metrics, terms, settings.beta, settings.label_smoothing)

    units, token_units = _units(settings)
    fitted = fit(
        training.policy,
        make_trainer,
        settings,
        context,
        callback=StageCallback(context, first_step),
        more_callbacks=(training.snapshots,),
        batch_size=settings.batch_size,
        units=units,
        token_units=token_units,
        split=not settings.sorts_pairs(),
        reference=True,
    )
    return training.finish(
        fitted.model, TrainingOutcome(fitted.curves, pairs.counts | {"mean_loss": fitted.mean_loss}, fitted.tokens)
    )


def _units(settings: DpoStage) -> tuple[Units, Units | None]:
    """What its loss is a mean over: pairs, or in TRL's "sft" the chosen answers' tokens; and its other terms."""
    losses = settings.losses()
    if losses == ("sft",):
        return chosen_token_count, None
    return row_count, chosen_token_count if "sft" in losses else None


def _trainer(
    settings: DpoStage, context: StageContext, training: PolicyTraining, rows: Dataset, callback: StageCallback
) -> TokenisedDPOTrainer:
    beforehand = settings.refresh_reference is None and computed_beforehand(context)
    reference = None
    if not beforehand and not isinstance(training.policy, PeftModel):
        reference = frozen_start(training, context)
    refresh = settings.refresh_reference
    # Before the stage's own, which marks a checkpoint as whole.
    before = [] if refresh is None else [ReferenceRefresh(context, refresh, reference)]
    arguments = DPOConfig(
        **trainer_arguments(settings, context),
        beta=settings.beta,
        loss_type=list(settings.losses()),
        loss_weights=list(settings.weights()),
        label_smoothing=settings.label_smoothing,
        precompute_ref_log_probs=beforehand,
        router_aux_loss_coef=settings.router_loss,
    )
    trainer = TokenisedDPOTrainer(
        model=training.policy,
        ref_model=reference,
        args=arguments,
        train_dataset=rows,
        processing_class=training.tokenizer,
        callbacks=[*before, callback],
    )
    if not beforehand:
        add_heads(trainer, reference, context)
    return trainer
