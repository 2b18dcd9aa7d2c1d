"""The pair classifier's training on preferences, and its measure on held-out ones.

A cross-encoder: prompt and both answers in one text, in the model's chat template, and one score at its end, the
log-odds that answer A is better. Unlike a reward model it sees the answers beside each other; unlike a judge that
writes it can only say what it was trained to say. How it is asked: :mod:`alignment.judges.pair_classifier`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from datasets import Dataset
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase, Trainer, TrainingArguments

from alignment.distributed.accumulation import row_count
from alignment.errors import StageError
from alignment.evaluation.held_out_pairs import HeldOutFigures, classifier_figures
from alignment.judges.pair_classifier import FILE, encoded
from alignment.judges.prompts import conversation, shown_answer
from alignment.judges.protocol import side
from alignment.models.reward_model import score
from alignment.preferences.pairs import split_pairs
from alignment.recipe.stages.pair_classifier import PairClassifierStage
from alignment.recipe.stages.training import CutChosen
from alignment.records import PreferencePair
from alignment.stage import StageContext, StageResult
from alignment.training.arguments import trainer_arguments
from alignment.training.callback import StageCallback
from alignment.training.fit import fit
from alignment.training.row_counts import Counts, cut_remedy, duplicates_before, log_counts, usable_pairs
from alignment.training.score_model import ScoreOutcome, ScoreTraining, begin_score_model

CROSS_ENTROPY = "multi_label_classification"  # transformers' name for it on the sigmoid of one logit


def run(settings: PairClassifierStage, context: StageContext) -> StageResult:
    """Trains a pair classifier and measures it on pairs whose prompts it never saw.

    Raises StageError where no pair fits, or none is held out.
    """
    training = begin_score_model(settings, context, problem_type=CROSS_ENTROPY)
    pairs, held_out = split_pairs(settings.preferences, context)
    sifted = sift_orders(
        pairs, training.tokenizer, settings.max_length, max_answer_tokens=settings.max_answer_tokens,
        cut_chosen=settings.cut_chosen,
    )  # fmt: skip
    fitting = sifted.rows
    if not fitting or not held_out:
        raise StageError(
            f"{len(fitting)} pairs in one order to train on and {len(held_out)} pairs held out; both must be more than "
            f"none: give more pairs, or raise max_length{cut_remedy(sifted.counts)}"
        )
    counts = sifted.counts | {"rows": float(len(fitting))}
    counts["duplicates"] += duplicates_before(context, settings.preferences)
    log_counts(context, counts)

    def make_trainer(callback: StageCallback) -> Any:
        return _trainer(settings, context, training, fitting, callback)

    def evaluate(model: Any) -> HeldOutFigures:
        return _evaluate(model, training.tokenizer, held_out, settings)

    fitted = fit(training.model, make_trainer, settings, context, batch_size=settings.batch_size, units=row_count)
    tokens = round(settings.epochs * sum(len(row["input_ids"]) for row in fitting))
    files = {FILE: json.dumps({"max_answer_tokens": settings.max_answer_tokens}) + "\n"}
    return training.finish(
        "pair_classifier",
        fitted.model,
        evaluate,
        ScoreOutcome(fitted.curves, counts | {"mean_loss": fitted.mean_loss}, tokens, files),
    )


@dataclass(frozen=True, slots=True)
class SiftedOrders:
    """Rows that there is something to learn from, and the ``counts`` of all others; both orders of a pair are rows."""

    rows: list[dict[str, Any]]
    counts: Counts


def both_orders(tokenizer: Any, pair: PreferencePair, max_answer_tokens: int) -> list[dict[str, Any]]:
    """A pair in both orders, with what the first answer is: 1 for the chosen one, 0 for the other."""
    question = conversation(pair.prompt)
    chosen = shown_answer(pair.chosen, finished=pair.chosen_finished)
    rejected = shown_answer(pair.rejected, finished=pair.rejected_finished)
    return [
        {"input_ids": encoded(tokenizer, question, answers, max_answer_tokens), "labels": [label]}
        for answers, label in (((chosen, rejected), 1.0), ((rejected, chosen), 0.0))
    ]


def sift_orders(
    pairs: Sequence[PreferencePair],
    tokenizer: Any,
    max_length: int,
    *,
    max_answer_tokens: int,
    cut_chosen: CutChosen,
) -> SiftedOrders:
    """The rows that a pair classifier learns from."""
    usable, counts = usable_pairs(pairs, cut_chosen)
    both = [both_orders(tokenizer, pair, max_answer_tokens) for pair in usable]
    distinct = [orders for orders in both if orders[0]["input_ids"] != orders[1]["input_ids"]]
    rows = [row for orders in distinct for row in orders]
    fitting = [row for row in rows if len(row["input_ids"]) <= max_length]
    return SiftedOrders(
        fitting,
        counts | {"dropped": float(len(rows) - len(fitting)), "identical": float(len(both) - len(distinct))},
    )


def _trainer(
    settings: PairClassifierStage,
    context: StageContext,
    training: ScoreTraining,
    rows: list[dict[str, Any]],
    callback: StageCallback,
) -> Trainer:
    arguments = {name: value for name, value in trainer_arguments(settings, context).items() if name != "max_length"}
    return Trainer(
        model=training.model,
        args=TrainingArguments(**arguments),
        train_dataset=Dataset.from_list(rows),
        data_collator=DataCollatorWithPadding(training.tokenizer),
        processing_class=training.tokenizer,
        callbacks=[callback],
    )


def _evaluate(
    model: Any, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[PreferencePair], settings: PairClassifierStage
) -> HeldOutFigures:
    """Figures on held-out pairs, each in both orders: log-odds are for the chosen answer."""
    rows = [row["input_ids"] for pair in pairs for row in both_orders(tokenizer, pair, settings.max_answer_tokens)]
    log_odds = score(model, tokenizer, rows, batch_size=2 * settings.batch_size)
    chosen_first, chosen_last = log_odds[::2], [0.0 - value for value in log_odds[1::2]]
    consistency = fmean(side(first) == side(last) for first, last in zip(chosen_first, chosen_last, strict=True))
    return classifier_figures(pairs, chosen_first, chosen_last, consistency=consistency)
