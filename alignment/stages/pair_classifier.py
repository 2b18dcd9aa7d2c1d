"""The discriminative judge: how it is trained on preferences, and how it is asked.

A cross-encoder: prompt and both answers in one text, in the model's chat template, and one score at its end, the
log-odds that answer A is better. Unlike a reward model it sees the answers beside each other; unlike a judge that
writes it can only say what it was trained to say.
"""

import json
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

from alignment.chat import template_digest
from alignment.distributed.fsdp import whole_model
from alignment.errors import StageError
from alignment.evaluation.calibration import expected_calibration_error, pair_accuracy, reliability
from alignment.judges.pair_classifier import FILE, encoded
from alignment.judges.prompts import conversation
from alignment.judges.protocol import side
from alignment.models.adapters import add_lora
from alignment.models.reward_model import new_reward_model, score
from alignment.preferences.pairs import split_pairs
from alignment.recipe.base import BASE
from alignment.recipe.stages.pair_classifier import PairClassifierStage
from alignment.records import PreferencePair
from alignment.stage import StageContext, StageResult
from alignment.training.trl import final_metrics, fit, seed_everything, trainer_arguments
from alignment.workspace import write_text


def run(settings: PairClassifierStage, context: StageContext) -> StageResult:
    """Trains a pair classifier and measures it on pairs whose prompts it never saw.

    Raises StageError where no pair fits, or none is held out.
    """
    seed_everything(context.run)
    train, held_out = split_pairs(settings.preferences, context)

    def make(placed: bool = True) -> tuple[Any, Any]:
        start, base = context.inputs[settings.model], context.inputs[BASE]
        model, tokenizer = new_reward_model(start, base, context.run, placed=placed)
        model.config.problem_type = "multi_label_classification"  # one logit, and cross-entropy on its sigmoid
        return model if settings.lora is None else add_lora(model, settings.lora, reward=True), tokenizer

    model, tokenizer = make(not context.sharded)
    rows = [row for pair in train for row in _both(tokenizer, pair, settings.max_answer_tokens)]
    kept = [row for row in rows if len(row["input_ids"]) <= settings.max_length]
    if not kept or not held_out:
        raise StageError(
            f"{len(kept)} pairs in one order to train on and {len(held_out)} pairs held out; both must be more than "
            "none: give more pairs, or raise max_length"
        )
    trainer, callback, loss = fit(
        model,
        lambda callback: _trainer(settings, context, model, tokenizer, kept, callback),
        context,
        batch_size=settings.batch_size,
    )
    trained = whole_model(trainer.model, lambda: make()[0], context)
    if context.rank > 0:
        return StageResult("pair_classifier", {})
    trained = trained.merge_and_unload() if isinstance(trained, PeftModel) else trained
    with context.working():
        metrics, detail = _evaluate(trained, tokenizer, held_out, settings)
    trained.save_pretrained(context.output)
    tokenizer.save_pretrained(context.output)
    write_text(context.output / FILE, json.dumps({"max_answer_tokens": settings.max_answer_tokens}) + "\n")
    write_text(context.output / "curves.json", json.dumps(callback.curves, sort_keys=True))
    write_text(context.output / "held_out.json", json.dumps(detail, indent=1))
    write_text(context.output / "chat_template.sha256", template_digest(tokenizer) + "\n")
    metrics = final_metrics(callback) | metrics | {
        "mean_loss": loss, "rows": float(len(kept)), "dropped": float(len(rows) - len(kept))
    }  # fmt: skip
    tokens = round(settings.epochs * sum(len(row["input_ids"]) for row in kept))
    return StageResult("pair_classifier", metrics, callback.curves, tokens_trained=tokens)


def _both(tokenizer: Any, pair: PreferencePair, longest: int) -> list[dict[str, Any]]:
    """A pair in both orders, with what the first answer is: 1 for the chosen one, 0 for the other."""
    question = conversation(pair.prompt)
    return [
        {"input_ids": encoded(tokenizer, question, (pair.chosen, pair.rejected), longest), "labels": [1.0]},
        {"input_ids": encoded(tokenizer, question, (pair.rejected, pair.chosen), longest), "labels": [0.0]},
    ]


def _trainer(
    settings: PairClassifierStage, context: StageContext, model: Any, tokenizer: Any, rows: Any, callback: Any
) -> Trainer:
    arguments = {name: value for name, value in trainer_arguments(settings, context).items() if name != "max_length"}
    trainer = Trainer(
        model=model,
        args=TrainingArguments(**arguments),
        train_dataset=Dataset.from_list(rows),
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        callbacks=[callback],
    )
    # Its forward takes any argument, the number of labels among them, and its loss is a mean all the same: taken for a
    # sum, the trainer would count it once for each worker and each accumulated batch.
    trainer.model_accepts_loss_kwargs = False
    return trainer


def _evaluate(
    model: Any, tokenizer: Any, pairs: Sequence[PreferencePair], settings: PairClassifierStage
) -> tuple[dict[str, float], dict[str, Any]]:
    """Figures on held-out pairs, each in both orders: log-odds are for the chosen answer."""
    rows = [row["input_ids"] for pair in pairs for row in _both(tokenizer, pair, settings.max_answer_tokens)]
    odds = score(model, tokenizer, rows, batch_size=2 * settings.batch_size)
    first, last = odds[::2], [0.0 - value for value in odds[1::2]]
    both = [(one + other) / 2 for one, other in zip(first, last, strict=True)]
    accuracy = pair_accuracy(both, [0.0] * len(both))
    probabilities = torch.sigmoid(torch.tensor(both, dtype=torch.float64))
    sides = [*probabilities.tolist(), *(1 - probabilities).tolist()]
    outcomes = [1] * len(both) + [0] * len(both)
    metrics = {
        "accuracy": accuracy.value,
        "accuracy.low": accuracy.low,
        "accuracy.high": accuracy.high,
        "position_consistency": fmean(side(one) == side(other) for one, other in zip(first, last, strict=True)),
        "ece": expected_calibration_error(sides, outcomes),
        "held_out_pairs": float(len(both)),
    }
    return metrics, {"first": first, "last": last, "margins": both, "reliability": reliability(sides, outcomes)}
