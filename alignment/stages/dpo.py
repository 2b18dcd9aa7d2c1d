"""Direct preference optimisation: TRL's trainer, with every loss it offers, on pairs that we tokenised.

The reference costs no second model where LoRA is on: it is the base with the adapter disabled, or, where the policy
already is an adapter (after SFT), a frozen copy of that adapter. Its log-probabilities are computed once, before
training; where the policy is sharded, with each batch, by models that are sharded as well. What is kept small: the
(tokens × vocabulary) logits, which TRL computes in chunks.
"""

import json
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftModel
from trl import DPOConfig, DPOTrainer

from alignment.chat import render_answer, render_prompt
from alignment.data.jsonl import read_records
from alignment.distributed.fsdp import shard_frozen, whole_state
from alignment.errors import StageError
from alignment.models.adapters import add_lora, is_adapter
from alignment.models.load import load_policy, save_policy
from alignment.recipe.base import BASE
from alignment.recipe.stages.dpo import DpoStage
from alignment.records import PreferencePair
from alignment.stage import StageContext, StageResult
from alignment.training.response_head import add_response_head
from alignment.training.snapshots import Snapshots
from alignment.training.trl import final_metrics, fit, seed_everything, trainer_arguments
from alignment.workspace import write_text


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
    """Trains ``settings.model`` on preference pairs. Raises StageError where every pair is too long to learn from."""
    seed_everything(context.run)
    start, base = context.inputs[settings.model], context.inputs[BASE]
    model, tokenizer = load_policy(start, base, context.run, trainable=True, placed=not context.sharded)
    if settings.lora is not None and not is_adapter(start):
        model = add_lora(model, settings.lora)
    pairs = read_records(Path(context.inputs[settings.preferences].path) / "pairs.jsonl", PreferencePair)
    rows = [tokenised_pair(tokenizer, pair) for pair in pairs]
    kept = [row for row in rows if len(row["prompt_ids"]) < settings.max_length]
    if not kept:
        raise StageError(f"every prompt alone fills max_length={settings.max_length} tokens; raise it")

    snapshots = Snapshots(settings.snapshot_every, tokenizer, base, context)
    trainer, callback, loss = fit(
        model,
        lambda callback: _trainer(settings, context, model, tokenizer, Dataset.from_list(kept), callback),
        context,
        also=(snapshots,),
        batch_size=settings.batch_size,
    )
    state = whole_state(trainer.model, trained_only=True)
    if context.rank > 0:
        return StageResult("model", {})
    save_policy(trainer.model, tokenizer, base, context.output, state=state)
    snapshots.publish()
    write_text(context.output / "curves.json", json.dumps(callback.curves, sort_keys=True))
    metrics = final_metrics(callback) | {
        "mean_loss": loss,
        "pairs": float(len(kept)),
        "dropped": float(len(rows) - len(kept)),
    }
    return StageResult("model", metrics, callback.curves, tokens_trained=callback.tokens)


def tokenised_pair(tokenizer: Any, pair: PreferencePair) -> dict[str, Any]:
    """The columns that TRL's preference collator reads: ``prompt_ids``, ``chosen_ids``, ``rejected_ids``."""
    prompt = render_prompt(tokenizer, pair.prompt)
    chosen, rejected = (render_answer(tokenizer, pair.prompt, text) for text in (pair.chosen, pair.rejected))
    return {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}


def _trainer(settings: DpoStage, context: StageContext, model: Any, tokenizer: Any, rows: Any, callback: Any) -> Any:
    reference = None
    if context.sharded and not isinstance(model, PeftModel):
        start, base = context.inputs[settings.model], context.inputs[BASE]
        reference = shard_frozen(load_policy(start, base, context.run, placed=False)[0])
    arguments = DPOConfig(
        **trainer_arguments(settings, context),
        beta=settings.beta,
        loss_type=[settings.loss],
        label_smoothing=settings.label_smoothing,
        precompute_ref_log_probs=not context.sharded,  # that is done before the policy is sharded: it may not fit
    )
    trainer = TokenisedDPOTrainer(
        model=model,
        ref_model=reference,
        args=arguments,
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=[callback],
    )
    if context.sharded:
        for one in filter(None, (trainer.model, reference)):
            add_response_head(one)
    return trainer
