"""The discriminative judge: how it is trained on preferences, and how it is asked.

A cross-encoder: prompt and both answers in one text, in the model's chat template, and one score at its end, the
log-odds that answer A is better. Unlike a reward model it sees the answers beside each other; unlike a judge that
writes it can only say what it was trained to say.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

from alignment.chat import render_prompt, template_digest
from alignment.evaluation.calibration import expected_calibration_error, pair_accuracy, reliability
from alignment.faults import StageError
from alignment.models.loading import add_lora, new_reward_model
from alignment.preferences.feedback_settings import PairClassifierStage
from alignment.preferences.judges.injection import gives_orders
from alignment.preferences.judges.protocol import Judgement, Tally, bounded, side
from alignment.preferences.judges.settings import PairClassifierJudge
from alignment.preferences.judges.templates import conversation, shortened
from alignment.preferences.pairs import split_pairs
from alignment.recipe_base import BASE
from alignment.records import Comparison, Message, PreferencePair
from alignment.reward.model import score
from alignment.sharding import whole_model
from alignment.stage import StageContext, StageResult
from alignment.training import final_metrics, fit, seed_everything, trainer_arguments
from alignment.workspace import write_text

FILE = "pair_classifier.json"


def run(settings: PairClassifierStage, context: StageContext) -> StageResult:
    """Trains a pair classifier and measures it on pairs whose prompts it never saw.

    Raises StageError where no pair fits, or none is held out.
    """
    seed_everything(context.recipe)
    train, held_out = split_pairs(settings.preferences, context)

    def make(placed: bool = True) -> tuple[Any, Any]:
        start, base = context.inputs[settings.model], context.inputs[BASE]
        model, tokenizer = new_reward_model(start, base, context.recipe, placed=placed)
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
        model, lambda callback: _trainer(settings, context, model, tokenizer, kept, callback), context
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


class ClassifierJudge:
    """See :class:`~alignment.preferences.judges.settings.PairClassifierJudge`."""

    def __init__(self, settings: PairClassifierJudge, folder: Path, model: Any, tokenizer: Any) -> None:
        self.settings, self.model, self.tokenizer = settings, model, tokenizer
        self.max_answer_tokens: int = json.loads((folder / FILE).read_text("utf-8"))["max_answer_tokens"]
        self.name = f"pair classifier {settings.model}"
        self.tally = Tally()

    async def judge(self, comparisons: Sequence[Comparison], /) -> list[Judgement]:
        shown = [one for one in comparisons if not any(gives_orders(response.text) for response in one.responses)]
        rows = []
        for one in shown:
            left, right = (response.text for response in one.responses)
            question = conversation(one.prompt.messages)
            orders = ((left, right), (right, left))
            rows += [encoded(self.tokenizer, question, texts, self.max_answer_tokens) for texts in orders]
        self.tally.asked += len(rows)
        self.tally.prompt_tokens += sum(map(len, rows))
        odds = score(self.model, self.tokenizer, rows, batch_size=self.settings.batch_size) if rows else []
        found = {
            one.id: Judgement(
                comparison_id=one.id, left_first=bounded(odds[2 * place]), left_last=bounded(0.0 - odds[2 * place + 1])
            )
            for place, one in enumerate(shown)
        }
        return [found.get(one.id) or Judgement(comparison_id=one.id, note="suspect") for one in comparisons]


def encoded(tokenizer: Any, question: str, answers: Sequence[str], max_answer_tokens: int) -> list[int]:
    """The token ids of a prompt and two answers in their order."""
    a, b = (shortened(tokenizer, text, max_answer_tokens) for text in answers)
    text = f"Question: {question}\n\nAnswer A: {a}\n\nAnswer B: {b}"
    return render_prompt(tokenizer, [Message(role="user", content=text)])


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
