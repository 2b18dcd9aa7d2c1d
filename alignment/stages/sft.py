"""Supervised fine-tuning: TRL's trainer on conversations that :mod:`alignment.chat` tokenised.

Loss on the assistant's tokens only (EOS included), whatever the template: the labels are ours, not the template's.
"""

from typing import Any

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from alignment.chat import render_example
from alignment.compression.students import with_student
from alignment.data.demonstrations import numbered_demonstrations
from alignment.distributed.accumulation import label_count
from alignment.errors import StageError
from alignment.recipe.stages.sft import SftStage
from alignment.stage import StageContext, StageResult
from alignment.training.arguments import trainer_arguments
from alignment.training.callback import StageCallback
from alignment.training.fit import fit
from alignment.training.packing import check_packing
from alignment.training.policy import PolicyTraining, TrainingOutcome, begin_policy
from alignment.training.response_head import add_response_head
from alignment.training.row_counts import is_cut, log_counts
from alignment.training.setup import demonstrations_file

IGNORED = -100  # the label that cross-entropy leaves out


def run(settings: SftStage, context: StageContext) -> StageResult:
    """Trains ``settings.model`` on the demonstrations.

    Raises StageError where truncation leaves nothing to learn, or packed examples would see each other.
    """
    training = begin_policy(settings, with_student(settings.model, settings.layers, context), reference=False)
    if settings.packing:
        check_packing(training.policy)
    demonstrations, duplicates = numbered_demonstrations(demonstrations_file(context, settings.demonstrations))
    rendered = [render_example(training.tokenizer, demonstration.messages) for _row, demonstration in demonstrations]
    learnable = [(ids, mask) for ids, mask in rendered if any(mask[: settings.max_length])]
    if not learnable:
        raise StageError(f"no demonstration has an answer within max_length={settings.max_length} tokens; raise it")

    counts = {
        "demonstrations": float(len(learnable)),
        "dropped": float(len(rendered) - len(learnable)),
        "duplicates": float(duplicates),
        "end_cut": float(sum(is_cut(mask, settings.max_length) for _ids, mask in learnable)),
    }
    log_counts(context, counts)

    def make_trainer(callback: StageCallback) -> Any:
        return _trainer(
            settings, context, training, Dataset.from_list([_example(ids, mask) for ids, mask in learnable]), callback
        )

    fitted = fit(training.policy, make_trainer, settings, context, batch_size=settings.batch_size, units=label_count)
    return training.finish(
        fitted.model, TrainingOutcome(fitted.curves, counts | {"mean_loss": fitted.mean_loss}, fitted.tokens)
    )


def _example(ids: list[int], mask: list[bool]) -> dict[str, list[int]]:
    labels = [token if keep else IGNORED for token, keep in zip(ids, mask, strict=True)]
    return {"input_ids": ids, "labels": labels}


def _trainer(
    settings: SftStage, context: StageContext, training: PolicyTraining, rows: Dataset, callback: StageCallback
) -> SFTTrainer:
    trainer = SFTTrainer(
        model=training.policy,
        args=SFTConfig(
            **trainer_arguments(settings, context),
            packing=settings.packing,
            router_aux_loss_coef=settings.router_loss,
        ),
        train_dataset=rows,
        processing_class=training.tokenizer,
        callbacks=[callback],
    )
    add_response_head(trainer.model)  # over the head that TRL has just patched on
    return trainer
