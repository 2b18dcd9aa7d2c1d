"""Supervised fine-tuning: TRL's trainer on conversations that :mod:`alignment.chat` tokenised.

Loss on the assistant's tokens only (EOS included), whatever the template: the labels are ours, not the template's.
"""

import json
from typing import Any

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from alignment.chat import render_example
from alignment.data.demonstrations import read_demonstrations
from alignment.distributed.fsdp import whole_state
from alignment.errors import StageError
from alignment.models.adapters import add_lora, is_adapter
from alignment.models.load import load_policy, save_policy
from alignment.recipe.base import BASE
from alignment.recipe.stages.sft import SftStage
from alignment.stage import StageContext, StageResult
from alignment.training.response_head import add_response_head
from alignment.training.trl import final_metrics, fit, seed_everything, trainer_arguments
from alignment.workspace import write_text

IGNORED = -100  # the label that cross-entropy leaves out


def run(settings: SftStage, context: StageContext) -> StageResult:
    """Trains ``settings.model`` on the demonstrations. Raises StageError where truncation leaves nothing to learn."""
    seed_everything(context.run)
    start, base = context.inputs[settings.model], context.inputs[BASE]
    model, tokenizer = load_policy(start, base, context.run, trainable=True, placed=not context.sharded)
    if settings.lora is not None and not is_adapter(start):
        model = add_lora(model, settings.lora)
    rows = [_row(tokenizer, demo.messages) for demo in read_demonstrations(context.data["demonstrations"])]
    kept = [row for row in rows if any(label != IGNORED for label in row["labels"][: settings.max_length])]
    if not kept:
        raise StageError(f"no demonstration has an answer within max_length={settings.max_length} tokens; raise it")

    trainer, callback, loss = fit(
        model,
        lambda callback: _trainer(settings, context, model, tokenizer, Dataset.from_list(kept), callback),
        context,
        batch_size=settings.batch_size,
    )
    state = whole_state(trainer.model, trained_only=True)
    if context.rank > 0:
        return StageResult("model", {})
    save_policy(trainer.model, tokenizer, base, context.output, state=state)
    write_text(context.output / "curves.json", json.dumps(callback.curves, sort_keys=True))
    metrics = final_metrics(callback) | {
        "mean_loss": loss,
        "demonstrations": float(len(kept)),
        "dropped": float(len(rows) - len(kept)),
    }
    return StageResult("model", metrics, callback.curves, tokens_trained=callback.tokens)


def _row(tokenizer: Any, messages: Any) -> dict[str, Any]:
    ids, mask = render_example(tokenizer, messages)
    labels = [token if keep else IGNORED for token, keep in zip(ids, mask, strict=True)]
    return {"input_ids": ids, "labels": labels}


def _trainer(settings: SftStage, context: StageContext, model: Any, tokenizer: Any, rows: Any, callback: Any) -> Any:
    arguments = SFTConfig(**trainer_arguments(settings, context), packing=settings.packing)
    trainer = SFTTrainer(
        model=model, args=arguments, train_dataset=rows, processing_class=tokenizer, callbacks=[callback]
    )
    add_response_head(trainer.model)  # over the head that TRL has just patched on
    return trainer
