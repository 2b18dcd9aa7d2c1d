"""The reward model's training: TRL's trainer on preference pairs, and its measure on held-out ones.

How a reward model is loaded and asked: :mod:`alignment.models.reward_model`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import RewardConfig, RewardTrainer

from alignment.chat import PairTokens, joined, render_pair
from alignment.distributed.accumulation import row_count
from alignment.errors import StageError
from alignment.evaluation.held_out_pairs import HeldOutFigures, reward_figures
from alignment.models.linear_probe import start_at_probe
from alignment.models.reward_model import last_layer, score
from alignment.preferences.pairs import split_pairs
from alignment.recipe.stages.reward import RewardStage
from alignment.records import PreferencePair
from alignment.stage import Progress, StageContext, StageResult
from alignment.training.arguments import trainer_arguments
from alignment.training.callback import StageCallback
from alignment.training.checkpoints import last_checkpoint
from alignment.training.fit import fit
from alignment.training.row_counts import cut_remedy, duplicates_before, log_counts, sift_pairs
from alignment.training.score_model import ScoreOutcome, ScoreTraining, begin_score_model


def run(settings: RewardStage, context: StageContext) -> StageResult:
    """Trains a reward model and measures it on pairs whose prompts it never saw.

    Raises StageError where no pair fits, or none is held out.
    """
    training = begin_score_model(settings, context)
    pairs, held_out = split_pairs(settings.preferences, context)
    sifted = sift_pairs(pairs, training.tokenizer, settings.max_length, whole=True, cut_chosen=settings.cut_chosen)
    if not sifted.learnable or not held_out:
        raise StageError(
            f"{len(sifted.learnable)} pairs to train on and {len(held_out)} held out; both must be more than none"
            + cut_remedy(sifted.counts)
        )
    rows = [_columns(training.tokenizer, pair, row, settings) for pair, row in sifted.learnable]
    counts = sifted.counts | {"pairs": float(len(rows))}
    counts["duplicates"] += duplicates_before(context, settings.preferences)
    log_counts(context, counts)
    if settings.head == "probe" and last_checkpoint(context.checkpoints, clean=False) is None:
        start_at_probe(
            training.model,
            training.tokenizer,
            [row["chosen_ids"] for row in rows],
            [row["rejected_ids"] for row in rows],
            clusters=[pair.prompt_id for pair, _row in sifted.learnable],
            centering=settings.center_rewards_coefficient or 0.0,
            batch_size=2 * settings.batch_size,
            heard=lambda done: context.report(Progress(done, 2 * len(rows))),
        )

    def make_trainer(callback: StageCallback) -> Any:
        return _trainer(settings, context, training, rows, callback)

    def evaluate(model: Any) -> HeldOutFigures:
        return _evaluate(model, training.tokenizer, held_out, settings)

    fitted = fit(training.model, make_trainer, settings, context, batch_size=settings.batch_size, units=row_count)
    outcome = ScoreOutcome(fitted.curves, counts | {"mean_loss": fitted.mean_loss}, fitted.tokens)
    return training.finish("reward_model", fitted.model, evaluate, outcome)


def _columns(tokenizer: Any, pair: PreferencePair, row: PairTokens, settings: RewardStage) -> dict[str, Any]:
    """The columns that TRL's preference collator reads."""
    answers = {"chosen_ids": row.chosen, "rejected_ids": row.rejected}
    columns: dict[str, Any] = {name: joined(tokenizer, row.prompt, answer) for name, answer in answers.items()}
    return columns | {"margin": pair.margin or 0.0} if settings.use_margin else columns


def _trainer(
    settings: RewardStage,
    context: StageContext,
    training: ScoreTraining,
    rows: list[dict[str, Any]],
    callback: StageCallback,
) -> RewardTrainer:
    arguments = RewardConfig(
        **trainer_arguments(settings, context), center_rewards_coefficient=settings.center_rewards_coefficient
    )
    return RewardTrainer(
        model=training.model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=training.tokenizer,
        callbacks=[callback],
    )


def _evaluate(
    model: Any, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[PreferencePair], settings: RewardStage
) -> HeldOutFigures:
    rows = [_columns(tokenizer, pair, render_pair(tokenizer, pair), settings) for pair in pairs]
    answers = [row[side] for side in ("chosen_ids", "rejected_ids") for row in rows]
    scores = score(model, tokenizer, answers, batch_size=2 * settings.batch_size)
    figures = reward_figures(pairs, scores[: len(rows)], scores[len(rows) :], calibrate=settings.calibrate)
    if settings.calibrate:
        with torch.no_grad():  # the saved model's scores are the calibrated ones
            for parameter in last_layer(model).parameters():
                parameter.div_(figures.metrics["temperature"])
    return figures
