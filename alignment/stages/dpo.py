"""Direct preference optimisation: TRL's trainer, with every loss it offers, on pairs that we tokenised.

The reference costs no second model where LoRA is on: it is the base with the adapter disabled, or, where the policy
already is an adapter (after SFT), a frozen copy of that adapter. What is kept small: the (tokens × vocabulary) logits,
which are computed in chunks.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer

from alignment.chat import PairTokens, render_pair
from alignment.data.jsonl import read_records
from alignment.distributed.accumulation import Units, row_count
from alignment.distributed.fsdp import shard_frozen
from alignment.errors import StageError
from alignment.models.families.head import head_kind
from alignment.models.load import load_policy
from alignment.recipe.stages.dpo import DpoStage
from alignment.records import PreferencePair
from alignment.stage import StageContext, StageResult
from alignment.training.arguments import trainer_arguments
from alignment.training.callback import StageCallback
from alignment.training.fit import fit
from alignment.training.invariants import check_first_dpo_step
from alignment.training.policy import PolicyTraining, TrainingOutcome, begin_policy
from alignment.training.response_head import add_response_head
from alignment.training.row_counts import cut_remedy, duplicates_before, log_counts, sift_pairs

SORTED = ("aot", "aot_unpaired")  # losses of a batch's sorted log-ratios, and not of each pair alone


class TokenisedDPOTrainer(DPOTrainer):  # type: ignore[misc]  # TRL is untyped
    """TRL's trainer, taking the columns that ours already tokenised instead of tokenising by itself."""

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset

    def _precompute_ref_logps(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        # The first call after TRL patched its own head onto the model, and before anything uses it.
        add_response_head(self.model)
        if self.accelerator.num_processes > 1:  # rank 0 writes a file that all read: where all of them can
            dataset._get_cache_file_path = lambda mark: str(Path(self.args.output_dir) / f"reference-{mark}.arrow")
        return super()._precompute_ref_logps(dataset, *args, **kwargs)


def run(settings: DpoStage, context: StageContext) -> StageResult:
    """Trains ``settings.model`` on preference pairs. Raises StageError where no pair is to learn from."""
    training = begin_policy(settings, context, reference=True)
    pairs = read_records(Path(context.inputs[settings.preferences].path) / "pairs.jsonl", PreferencePair)
    sifted = sift_pairs(pairs, training.tokenizer, settings.max_length, whole=False, cut_chosen=settings.cut_chosen)
    if not sifted.learnable:
        raise StageError(_why_none(sifted.counts, settings.max_length))
    rows = [_columns(row) for _pair, row in sifted.learnable]
    counts = sifted.counts | {"pairs": float(len(rows))}
    counts["duplicates"] += duplicates_before(context, settings.preferences)
    log_counts(context, counts)

    def make_trainer(callback: StageCallback) -> Any:
        return _trainer(settings, context, training, Dataset.from_list(rows), callback)

    fitted = fit(
        training.policy,
        make_trainer,
        settings,
        context,
        callback=StageCallback(context, lambda metrics: check_first_dpo_step(metrics, settings.loss)),
        more_callbacks=(training.snapshots,),
        batch_size=settings.batch_size,
        units=_units(settings),
        split=settings.loss not in SORTED,
        reference=True,
    )
    return training.finish(
        fitted.model, TrainingOutcome(fitted.curves, counts | {"mean_loss": fitted.mean_loss}, fitted.tokens)
    )


def _units(settings: DpoStage) -> Units:
    """What its loss is a mean over: pairs, or in TRL's "sft" the chosen answers' tokens."""
    return chosen_token_count if settings.loss == "sft" else row_count


def chosen_token_count(batch: Mapping[str, Any]) -> int:
    """The tokens of chosen answers, which stand in the first half of a batch."""
    chosen: torch.Tensor = batch["completion_mask"][..., 1:].chunk(2)[0]
    return int(chosen.sum())


def _why_none(counts: Mapping[str, float], max_length: int) -> str:
    if counts["identical"]:
        problem = f"the answers of every pair are the same within max_length={max_length} tokens"
    elif counts["dropped"]:
        problem = f"every prompt alone fills max_length={max_length} tokens; raise it"
    else:
        problem = "no pair is left to train on"
    return problem + cut_remedy(counts)


def tokenised_pair(tokenizer: PreTrainedTokenizerBase, pair: PreferencePair) -> dict[str, list[int]]:
    """The columns that TRL's preference collator reads: ``prompt_ids``, ``chosen_ids``, ``rejected_ids``."""
    return _columns(render_pair(tokenizer, pair))


def _columns(row: PairTokens) -> dict[str, list[int]]:
    return {"prompt_ids": row.prompt, "chosen_ids": row.chosen, "rejected_ids": row.rejected}


def _trainer(
    settings: DpoStage, context: StageContext, training: PolicyTraining, rows: Dataset, callback: StageCallback
) -> TokenisedDPOTrainer:
    beforehand = computed_beforehand(context)
    reference = None
    if not beforehand and not isinstance(training.policy, PeftModel):
        reference = _frozen_start(training, context)
    arguments = DPOConfig(
        **trainer_arguments(settings, context),
        beta=settings.beta,
        loss_type=[settings.loss],
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
        callbacks=[callback],
    )
    if not beforehand:
        for model in filter(None, (trainer.model, reference)):
            add_response_head(model)
    if reference is not None and not context.sharded:  # the head has replaced what accelerate wrapped
        reference.forward = torch.autocast(reference.device.type, torch.bfloat16)(reference.forward)
    return trainer


def computed_beforehand(context: StageContext) -> bool:
    """Whether the reference's log-probabilities are computed once, before training, and not with each batch.

    In float32 alone: in bfloat16 the padding of another batch moves an answer by 0.4 nats, so policy and reference have
    to pass through the same one. And not where the policy is to be sharded: whole, it may not fit.
    """
    return context.run.model.dtype == "float32" and not context.sharded


def _frozen_start(training: PolicyTraining, context: StageContext) -> Any:
    """What a policy of whole weights starts from, in the format that these are trained in."""
    model, _tokenizer = load_policy(
        training.start, training.base, context.run, placed=not context.sharded, masters=True
    )
    head_kind(model)  # tried while its weights are whole
    return shard_frozen(model) if context.sharded else model.requires_grad_(False)
