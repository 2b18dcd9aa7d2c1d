"""The training of a policy on preference pairs that is compared with nothing but itself: the stages SimPO and ORPO.

Each is TRL's DPO trainer with another loss (:mod:`alignment.training.preference.reference_free`): the same tokens,
batches and head. Half of DPO's passes fall away, and the reference's weights.
"""

from pathlib import Path

from datasets import Dataset
from trl import DPOConfig

from alignment.data.jsonl import read_records
from alignment.distributed.accumulation import row_count
from alignment.errors import StageError
from alignment.recipe.stages.preference.reference_free import ReferenceFreeTraining
from alignment.records import PreferencePair
from alignment.stage import StageContext, StageResult
from alignment.training.arguments import trainer_arguments
from alignment.training.callback import StageCallback
from alignment.training.fit import fit
from alignment.training.policy import TrainingOutcome, begin_policy
from alignment.training.preference.dpo_trainer import chosen_token_count, pair_columns, why_no_pair
from alignment.training.preference.reference_free import PairObjective, ReferenceFreeTrainer
from alignment.training.row_counts import duplicates_before, log_counts, sift_pairs


def train_without_reference(
    settings: ReferenceFreeTraining, context: StageContext, objective: PairObjective, *, beta: float
) -> StageResult:
    """Trains ``settings.model`` on preference pairs; ``beta`` is the scale of the rewards that are reported.

    Raises StageError where no pair is to learn from.
    """
    training = begin_policy(settings, context, reference=False)
    pairs = read_records(Path(context.inputs[settings.preferences].path) / "pairs.jsonl", PreferencePair)
    sifted = sift_pairs(pairs, training.tokenizer, settings.max_length, whole=False, cut_chosen=settings.cut_chosen)
    if not sifted.learnable:
        raise StageError(why_no_pair(sifted.counts, settings.max_length))
    rows = pair_columns([row for _pair, row in sifted.learnable])
    counts = sifted.counts | {"pairs": float(len(rows))}
    counts["duplicates"] += duplicates_before(context, settings.preferences)
    log_counts(context, counts)

    def make_trainer(callback: StageCallback) -> ReferenceFreeTrainer:
        arguments = DPOConfig(
            **trainer_arguments(settings, context),
            beta=beta,
            precompute_ref_log_probs=True,  # so that TRL holds no reference; none is computed
            disable_dropout=False,  # nothing is compared
        )
        trainer = ReferenceFreeTrainer(
            model=training.policy,
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=training.tokenizer,
            callbacks=[callback],
        )
        trainer.objective = objective
        return trainer

    fitted = fit(
        training.policy,
        make_trainer,
        settings,
        context,
        more_callbacks=(training.snapshots,),
        batch_size=settings.batch_size,
        units=row_count,
        token_units=chosen_token_count,
    )
    return training.finish(
        fitted.model, TrainingOutcome(fitted.curves, counts | {"mean_loss": fitted.mean_loss}, fitted.tokens)
    )
