"""Supervised fine-tuning: TRL's trainer on conversations that :mod:`alignment.chat` tokenised.

Loss on the assistant's tokens only (EOS included), whatever the template: the labels are ours, not the template's.
"""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from alignment.chat import render_example
from alignment.data.demonstrations import read_demonstrations
from alignment.errors import StageError
from alignment.recipe.stages.sft import SftStage
from alignment.records import Message
from alignment.stage import StageContext, StageResult
from alignment.training.arguments import trainer_arguments
from alignment.training.callback import StageCallback
from alignment.training.fit import fit
from alignment.training.policy import Outcome, PolicyTraining, begin_policy
from alignment.training.response_head import add_response_head

IGNORED = -100  # the label that cross-entropy leaves out


def run(settings: SftStage, context: StageContext) -> StageResult:
    """Trains ``settings.model`` on the demonstrations. Raises StageError where truncation leaves nothing to learn."""
    training = begin_policy(settings, context, reference=False)
    demonstrations = read_demonstrations(context.data["demonstrations"])
    examples = [_example(training.tokenizer, demonstration.messages) for demonstration in demonstrations]
    learnable = [row for row in examples if any(label != IGNORED for label in row["labels"][: settings.max_length])]
    if not learnable:
        raise StageError(f"no demonstration has an answer within max_length={settings.max_length} tokens; raise it")

    def make_trainer(callback: StageCallback) -> Any:
        return _trainer(settings, context, training, Dataset.from_list(learnable), callback)

    fitted = fit(training.policy, make_trainer, settings, context, batch_size=settings.batch_size)
    metrics = {
        "mean_loss": fitted.mean_loss,
        "demonstrations": float(len(learnable)),
        "dropped": float(len(examples) - len(learnable)),
    }
    return training.finish(fitted.model, Outcome(fitted.curves, metrics, fitted.tokens))


def _example(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> dict[str, list[int]]:
    ids, mask = render_example(tokenizer, messages)
    labels = [token if keep else IGNORED for token, keep in zip(ids, mask, strict=True)]
    return {"input_ids": ids, "labels": labels}


def _trainer(
    settings: SftStage, context: StageContext, training: PolicyTraining, rows: Dataset, callback: StageCallback
) -> SFTTrainer:
    trainer = SFTTrainer(
        model=training.policy,
        args=SFTConfig(**trainer_arguments(settings, context), packing=settings.packing),
        train_dataset=rows,
        processing_class=training.tokenizer,
        callbacks=[callback],
    )
    add_response_head(trainer.model)  # over the head that TRL has just patched on
    return trainer
