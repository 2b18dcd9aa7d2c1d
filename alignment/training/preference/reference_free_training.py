"""The training of a policy on preference pairs that is compared with nothing but itself: the stages SimPO and ORPO.

Each is TRL's DPO trainer with another loss (:mod:`alignment.training.preference.reference_free`): the same tokens,
batches and head. Half of DPO's passes fall away, and the reference's weights.
"""

from datasets import Dataset
from trl import DPOConfig

from alignment.distributed.accumulation import row_count
from alignment.recipe.stages.preference.reference_free import ReferenceFreeTraining
from alignment.stage import StageContext, StageResult
from alignment.training.arguments import trainer_arguments
from alignment.training.callback import StageCallback
from alignment.training.fit import fit
from alignment.training.policy import TrainingOutcome, begin_policy
from alignment.training.preference.dpo_trainer import chosen_token_count
from alignment.training.preference.pairs import read_training_pairs
from alignment.training.preference.reference_free import PairObjective, ReferenceFreeTrainer


def train_without_reference(
    settings: ReferenceFreeTraining, context: StageContext, objective: PairObjective, *, beta: float
) -> StageResult:
    """Trains ``settings.model`` on preference pairs; ``beta`` is the scale of the rewards that are reported.

    Raises StageError where no pair is to learn from.
    """
    training = begin_policy(settings, context, reference=False)
    pairs = read_training_pairs(settings, context, training.tokenizer)

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
            train_dataset=Dataset.from_list(pairs.rows),
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
        fitted.model, TrainingOutcome(fitted.curves, pairs.counts | {"mean_loss": fitted.mean_loss}, fitted.tokens)
    )
