"""Distillation: a student learns a teacher's next-token distributions, on demonstrations or on its own answers.

The loss of a demonstration's batch is the mean divergence over the assistant's tokens. On-policy, the student first
answers the prompts of the batch; the loss is the mean over the answers of each one's mean divergence, and no gradient
goes through what was drawn (Agarwal et al. 2024).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from alignment.chat import render_example, render_prompt
from alignment.compression.divergences import divergence
from alignment.compression.students import with_student
from alignment.data.demonstrations import numbered_demonstrations
from alignment.digests import digest_of
from alignment.distributed.accumulation import label_count, row_count
from alignment.errors import StageError
from alignment.models.load import load_policy
from alignment.recipe.base import BASE
from alignment.recipe.stages.compression.distil import DistilStage
from alignment.records import Sampling
from alignment.rollouts.factory import local_engine
from alignment.rollouts.seeds import derived_seed
from alignment.stage import StageContext, StageResult
from alignment.training.arguments import shared_arguments
from alignment.training.callback import StageCallback
from alignment.training.fit import fit
from alignment.training.policy import PolicyTraining, TrainingOutcome, begin_policy
from alignment.training.setup import demonstrations_file

IGNORED = -100  # the label of what is not learned


def run(settings: DistilStage, context: StageContext) -> StageResult:
    """Trains the student.

    Raises StageError where student and teacher have other vocabularies, or truncation leaves nothing to learn.
    """
    training = begin_policy(settings, with_student(settings.model, settings.layers, context), reference=False)
    teacher, teacher_tokenizer = load_policy(context.inputs[settings.teacher], context.inputs[BASE], context.run)
    teacher.requires_grad_(False)
    check_vocabularies(training.tokenizer, teacher_tokenizer, training.policy.config, teacher.config)
    rows, counts = _rows(settings, context, training.tokenizer)

    def make_trainer(callback: StageCallback) -> DistilTrainer:
        arguments = TrainingArguments(
            **shared_arguments(settings, context),
            num_train_epochs=settings.epochs,
            gradient_accumulation_steps=settings.gradient_accumulation,
            remove_unused_columns=False,
        )
        trainer = DistilTrainer(
            model=training.policy, args=arguments, train_dataset=rows, data_collator=collate, callbacks=[callback]
        )
        trainer.settings, trainer.teacher, trainer.training = settings, teacher, training
        return trainer

    units = row_count if settings.source == "on_policy" else label_count
    fitted = fit(training.policy, make_trainer, settings, context, units=units)
    metrics = counts | {"mean_loss": fitted.mean_loss, "divergence": fitted.curves["loss"][-1][1]}
    tokens = round(settings.epochs * sum(len(row["input_ids"]) for row in rows))
    return training.finish(fitted.model, TrainingOutcome(fitted.curves, metrics, tokens))


def check_vocabularies(student: Any, teacher: Any, own: Any, wanted: Any) -> None:
    """Raises StageError where a token's number means one thing to the student and another to the teacher."""
    if student.get_vocab() != teacher.get_vocab() or own.vocab_size != wanted.vocab_size:
        raise StageError(
            f"student and teacher have other vocabularies ({own.vocab_size} and {wanted.vocab_size} tokens): their "
            "distributions cannot be compared; name a teacher with the student's tokenizer"
        )


class DistilTrainer(Trainer):  # type: ignore[misc]  # transformers is untyped here
    """The loss of a batch; everything else is transformers' own."""

    settings: DistilStage
    teacher: Any
    training: PolicyTraining

    def compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], *_: Any, **__: Any) -> torch.Tensor:
        on_policy = self.settings.source == "on_policy"
        batch = self._drawn(inputs) if on_policy else inputs
        seen = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        mask = batch["labels"][:, 1:] != IGNORED
        own = model(**seen).logits[:, :-1][mask]
        with torch.no_grad():
            wanted = self.teacher(**seen).logits[:, :-1][mask]
        each = divergence(
            own, wanted, self.settings.divergence, temperature=self.settings.temperature, top_k=self.settings.top_k
        )
        if not on_policy:
            return each.mean()
        rows = mask.nonzero()[:, 0]
        lengths = mask.sum(-1)
        return (each / lengths[rows]).sum() / len(mask)

    def _drawn(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The prompts of a batch with the student's own answers, drawn at temperature 1."""
        training, step = self.training, self.state.global_step
        prompts = [
            ids[kept.bool()].tolist() for ids, kept in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
        ]
        sampling = Sampling(temperature=1.0, max_new_tokens=self.settings.drawn_length())
        seed = training.context.run.seed
        engine = local_engine(training.policy, training.tokenizer, batch_size=len(prompts))
        seeds = [derived_seed(seed, step, digest_of(prompt)) for prompt in prompts]
        drawn = engine.generate(prompts, sampling=sampling, seeds=seeds)
        rows = [
            {"input_ids": [*prompt, *one.tokens], "labels": [IGNORED] * len(prompt) + list(one.tokens)}
            for prompt, (one,) in zip(prompts, drawn, strict=True)
        ]
        return {name: value.to(inputs["input_ids"].device) for name, value in collate(rows).items()}


def collate(rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Rows as one batch, padded on the right."""
    longest = max(len(row["input_ids"]) for row in rows)

    def padded(values: Sequence[int], filler: int) -> list[int]:
        return [*values, *[filler] * (longest - len(values))]

    return {
        "input_ids": torch.tensor([padded(row["input_ids"], 0) for row in rows]),
        "labels": torch.tensor([padded(row["labels"], IGNORED) for row in rows]),
        "attention_mask": torch.tensor([padded([1] * len(row["input_ids"]), 0) for row in rows]),
    }


def _rows(
    settings: DistilStage, context: StageContext, tokenizer: Any
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """What is learned from: demonstrations with the assistant's tokens as labels, or their prompts alone."""
    demonstrations, duplicates = numbered_demonstrations(demonstrations_file(context, settings.demonstrations))
    rows: list[dict[str, Any]] = []
    for _row, one in demonstrations:
        if settings.source == "on_policy":
            ids = render_prompt(tokenizer, one.messages[:-1])
            if len(ids) + settings.drawn_length() <= settings.max_length:
                rows.append({"input_ids": ids, "labels": [IGNORED] * len(ids)})
            continue
        ids, answer_mask = render_example(tokenizer, one.messages)
        labels = [token if keep else IGNORED for token, keep in zip(ids, answer_mask, strict=True)]
        cut = slice(settings.max_length)
        if any(label != IGNORED for label in labels[1:][: settings.max_length - 1]):
            rows.append({"input_ids": ids[cut], "labels": labels[cut]})
    if not rows:
        raise StageError(f"no demonstration has room within max_length={settings.max_length} tokens; raise it")
    kept = {"demonstrations": float(len(rows)), "dropped": float(len(demonstrations) - len(rows))}
    return rows, kept | {"duplicates": float(duplicates)}
