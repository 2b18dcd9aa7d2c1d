"""Kahneman–Tversky optimisation (Ethayarajh et al. 2024): TRL's trainer on single answers that were found good or bad.

They come from people's thumbs, from a file of such, or from preference pairs, whose chosen answers are good and whose
rejected ones are bad. A reward is measured from the policy's KL to the reference, which each batch estimates on its own
answers paired with other prompts; the order of the answers is drawn once, because that pairing is fixed.
"""

import random
from collections.abc import Iterator, Mapping
from pathlib import Path

from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedTokenizerBase
from trl import KTOConfig

from alignment.chat import render_answer, render_prompt
from alignment.data.feedback import feedback_of_pairs, numbered_feedback
from alignment.data.jsonl import read_records
from alignment.distributed.accumulation import row_count
from alignment.errors import StageError
from alignment.recipe.stages.preference.kto import KtoStage
from alignment.records import Feedback, PreferencePair
from alignment.stage import StageContext, StageResult
from alignment.training.arguments import trainer_arguments
from alignment.training.callback import StageCallback
from alignment.training.fit import fit
from alignment.training.invariants import check_first_kto_step
from alignment.training.policy import PolicyTraining, TrainingOutcome, begin_policy
from alignment.training.preference.dpo_trainer import add_heads, computed_beforehand, frozen_start
from alignment.training.preference.kto_trainer import MarkedAnswer, TokenisedKTOTrainer, kto_columns
from alignment.training.row_counts import (
    Counts,
    duplicates_before,
    log_counts,
    usable_feedback,
    usable_pairs,
)


def run(settings: KtoStage, context: StageContext) -> StageResult:
    """Trains ``settings.model`` on marked answers. Raises StageError where there are not both kinds to learn from."""
    training = begin_policy(settings, context, reference=True)
    feedback, counts = _feedback(settings, context)
    answers = list(_answers(feedback, training.tokenizer, settings.max_length))
    good = sum(one.label for one in answers)
    counts |= {
        "answers": float(len(answers)),
        "desirable": float(good),
        "dropped": float(len(feedback) - len(answers)),
    }
    if not 0 < good < len(answers):
        raise StageError(_why_none(answers, counts, settings.max_length))
    log_counts(context, counts)
    random.Random(context.run.seed).shuffle(answers)
    rows = kto_columns(answers, settings.batch_size, mismatched=settings.estimates_kl())

    def make_trainer(callback: StageCallback) -> TokenisedKTOTrainer:
        return _trainer(settings, context, training, Dataset.from_list(rows), callback)

    def first_step(metrics: Mapping[str, float]) -> None:
        check_first_kto_step(metrics, (settings.desirable_weight, settings.undesirable_weight))

    fitted = fit(
        training.policy,
        make_trainer,
        settings,
        context,
        callback=StageCallback(context, first_step),
        more_callbacks=(training.snapshots,),
        batch_size=settings.batch_size,
        units=row_count,
        reference=True,
    )
    return training.finish(
        fitted.model, TrainingOutcome(fitted.curves, counts | {"mean_loss": fitted.mean_loss}, fitted.tokens)
    )


def _feedback(settings: KtoStage, context: StageContext) -> tuple[list[Feedback], Counts]:
    """The answers to learn from, each once, and the counts of the others."""
    if settings.feedback is not None:
        given = read_records(Path(context.inputs[settings.feedback].path) / "feedback.jsonl", Feedback)
        feedback = list({one.id: one for one in given}.values())
        kept, counts = usable_feedback(feedback, settings.cut_chosen)
        return kept, counts | {"duplicates": float(len(given) - len(feedback))}
    if settings.preferences is None:
        numbered, duplicates = numbered_feedback(context.data["feedback"])
        kept, counts = usable_feedback([one for _row, one in numbered], settings.cut_chosen)
        return kept, counts | {"duplicates": float(duplicates)}
    pairs = read_records(Path(context.inputs[settings.preferences].path) / "pairs.jsonl", PreferencePair)
    usable, counts = usable_pairs(pairs, settings.cut_chosen)
    counts["duplicates"] += duplicates_before(context, settings.preferences)
    return feedback_of_pairs(usable), counts


def _answers(feedback: list[Feedback], tokenizer: PreTrainedTokenizerBase, max_length: int) -> Iterator[MarkedAnswer]:
    """Those of which something is left within ``max_length`` tokens."""
    for one in feedback:
        prompt = render_prompt(tokenizer, one.prompt)
        completion = render_answer(tokenizer, one.prompt, one.completion, finished=one.finished)
        if completion and len(prompt) < max_length:
            yield MarkedAnswer(prompt, completion, one.label)


def _why_none(answers: list[MarkedAnswer], counts: Counts, max_length: int) -> str:
    if answers:
        word = "good" if answers[0].label else "bad"
        return f"every answer that is left to train on is {word}, and KTO needs both kinds" + _cut(counts)
    if counts["dropped"]:
        return f"every prompt alone fills max_length={max_length} tokens; raise it"
    return "no answer is left to train on"


def _cut(counts: Counts) -> str:
    """What to do where good answers were left out because they were cut off; empty where none was."""
    if not counts["cut_chosen"]:
        return ""
    left_out = f"{counts['cut_chosen']:.0f} good ones were cut off and left out"
    return f"; {left_out}: raise max_new_tokens where they are drawn, or set cut_chosen to keep"


def _trainer(
    settings: KtoStage, context: StageContext, training: PolicyTraining, rows: Dataset, callback: StageCallback
) -> TokenisedKTOTrainer:
    beforehand = computed_beforehand(context)
    reference = None
    if not beforehand and not isinstance(training.policy, PeftModel):
        reference = frozen_start(training, context)
    arguments = KTOConfig(
        **trainer_arguments(settings, context),
        beta=settings.beta,
        loss_type=settings.loss,
        desirable_weight=settings.desirable_weight,
        undesirable_weight=settings.undesirable_weight,
        precompute_ref_log_probs=beforehand,
        train_sampling_strategy="sequential",  # the mismatched answers are those of fixed batches
    )
    trainer = TokenisedKTOTrainer(
        model=training.policy,
        ref_model=reference,
        args=arguments,
        train_dataset=rows,
        processing_class=training.tokenizer,
        callbacks=[callback],
    )
    if not beforehand:
        add_heads(trainer, reference, context)
    return trainer
