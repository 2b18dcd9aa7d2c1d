"""The reward model: TRL's trainer on preference pairs, judged on held-out ones.

The trunk is the policy's that it starts from, adapter merged, and the saved model is whole: a reward model is an
artifact that anyone can load and score with, on no other base than its own.
"""

import json
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from trl import RewardConfig, RewardTrainer

from alignment.chat import render_answer, render_prompt, template_digest
from alignment.distributed.fsdp import whole_model
from alignment.errors import StageError
from alignment.evaluation.calibration import (
    calibration_error,
    expected_calibration_error,
    pair_accuracy,
    pair_predictions,
    reliability,
)
from alignment.evaluation.slices import accuracy_slices
from alignment.models.adapters import add_lora
from alignment.models.reward_model import new_reward_model, score
from alignment.preferences.pairs import split_pairs
from alignment.recipe.base import BASE
from alignment.recipe.stages.reward import RewardStage
from alignment.records import PreferencePair
from alignment.stage import StageContext, StageResult
from alignment.training.trl import final_metrics, fit, seed_everything, trainer_arguments
from alignment.workspace import write_text


def run(settings: RewardStage, context: StageContext) -> StageResult:
    """Trains a reward model and measures it on pairs whose prompts it never saw.

    Raises StageError where no pair fits, or none is held out.
    """
    seed_everything(context.run)
    start, base = context.inputs[settings.model], context.inputs[BASE]
    train, held_out = split_pairs(settings.preferences, context)

    def make(placed: bool = True) -> tuple[Any, Any]:
        model, tokenizer = new_reward_model(start, base, context.run, placed=placed)
        return model if settings.lora is None else add_lora(model, settings.lora, reward=True), tokenizer

    model, tokenizer = make(not context.sharded)
    rows = [_row(tokenizer, pair, settings) for pair in train]
    kept = [row for row in rows if max(len(row["chosen_ids"]), len(row["rejected_ids"])) <= settings.max_length]
    if not kept or not held_out:
        raise StageError(f"{len(kept)} pairs to train on and {len(held_out)} held out; both must be more than none")
    trainer, callback, loss = fit(
        model,
        lambda callback: _trainer(settings, context, model, tokenizer, kept, callback),
        context,
        batch_size=settings.batch_size,
    )
    trained = whole_model(trainer.model, lambda: make()[0], context)
    if context.rank > 0:
        return StageResult("reward_model", {})
    trained = trained.merge_and_unload() if isinstance(trained, PeftModel) else trained
    with context.working():
        evaluated = _evaluate(trained, tokenizer, held_out, settings)
    trained.save_pretrained(context.output)
    tokenizer.save_pretrained(context.output)
    write_text(context.output / "curves.json", json.dumps(callback.curves, sort_keys=True))
    write_text(context.output / "held_out.json", json.dumps(evaluated["detail"], indent=1))
    write_text(context.output / "chat_template.sha256", template_digest(tokenizer) + "\n")
    metrics = (
        final_metrics(callback)
        | evaluated["metrics"]
        | {
            "mean_loss": loss,
            "pairs": float(len(kept)),
            "dropped": float(len(rows) - len(kept)),
        }
    )
    return StageResult("reward_model", metrics, callback.curves, tokens_trained=callback.tokens)


def _row(tokenizer: Any, pair: PreferencePair, settings: RewardStage) -> dict[str, Any]:
    prompt = render_prompt(tokenizer, pair.prompt)
    row: dict[str, Any] = {
        "chosen_ids": prompt + render_answer(tokenizer, pair.prompt, pair.chosen),
        "rejected_ids": prompt + render_answer(tokenizer, pair.prompt, pair.rejected),
    }
    return row | {"margin": pair.margin or 0.0} if settings.use_margin else row


def _trainer(settings: RewardStage, context: StageContext, model: Any, tokenizer: Any, rows: Any, callback: Any) -> Any:
    arguments = RewardConfig(
        **trainer_arguments(settings, context), center_rewards_coefficient=settings.center_rewards_coefficient
    )
    return RewardTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[callback],
    )


def _evaluate(model: Any, tokenizer: Any, pairs: list[PreferencePair], settings: RewardStage) -> dict[str, Any]:
    rows = [_row(tokenizer, pair, settings) for pair in pairs]
    size = 2 * settings.batch_size
    scores = score(
        model, tokenizer, [row[side] for side in ("chosen_ids", "rejected_ids") for row in rows], batch_size=size
    )
    chosen, rejected = scores[: len(rows)], scores[len(rows) :]
    margins = [c - r for c, r in zip(chosen, rejected, strict=True)]
    accuracy = pair_accuracy(chosen, rejected)
    # A pair's order carries no information, so calibration looks at both: P(left wins) and P(right wins).
    probabilities = torch.sigmoid(torch.tensor(margins, dtype=torch.float64))
    both = [*probabilities.tolist(), *(1 - probabilities).tolist()]
    outcomes = [1] * len(rows) + [0] * len(rows)
    error = calibration_error(*(side.tolist() for side in pair_predictions(chosen, rejected)))
    metrics = {
        "accuracy": accuracy.value,
        "accuracy.low": accuracy.low,
        "accuracy.high": accuracy.high,
        "margin.mean": sum(margins) / len(margins),
        "ece": expected_calibration_error(both, outcomes),
        "ece.debiased": error.value,
        "ece.low": error.low,
        "ece.high": error.high,
        "held_out_pairs": float(len(rows)),
    }
    detail = {"margins": margins, "chosen": chosen, "rejected": rejected, "reliability": reliability(both, outcomes),
              "slices": [one.model_dump(mode="json") for one in accuracy_slices(pairs, margins)]}  # fmt: skip
    return {"metrics": metrics, "detail": detail}
