"""The trainer of pretraining: the mean loss of all tokens, by the model's own head, a part of them at a time."""

import math
from collections.abc import Callable
from typing import Any

import torch
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

from alignment.recipe.stages.pretraining.pretrain import PretrainStage
from alignment.stage import StageContext
from alignment.training.arguments import shared_arguments
from alignment.training.callback import StageCallback
from alignment.training.pretraining.muon import muon_optimizer
from alignment.training.pretraining.rows import PackedRows, stacked


class PretrainTrainer(Trainer):  # type: ignore[misc]  # transformers is untyped here
    """The loss of a batch and the optimizer; everything else is transformers' own. ``routed``: the routers' loss is
    added."""

    settings: PretrainStage
    routed: bool = False
    optimizer: Any

    def create_optimizer(self, model: Any = None) -> Any:
        """Called by the trainer before its first step."""
        if self.settings.optimizer == "adamw":
            return super().create_optimizer(model)
        if self.optimizer is None:
            self.optimizer = muon_optimizer(
                self.model if model is None else model,
                learning_rate=self.settings.learning_rate,
                weight_decay=self.settings.weight_decay,
                betas=(self.args.adam_beta1, self.args.adam_beta2),
            )
        return self.optimizer

    def compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], *_: Any, **__: Any) -> torch.Tensor:
        options = {"output_router_logits": True} if self.routed else {}
        loss: torch.Tensor = model(**inputs, fused_lm_head=True, **options).loss
        return loss


class PretrainCallback(StageCallback):
    """Counts tokens, and measures the held-out perplexity every ``every`` steps. ``perplexity`` is of a model."""

    def __init__(
        self,
        context: StageContext,
        tokens_at: Callable[[int], int],
        every: int | None,
        perplexity: Callable[[Any], float],
    ) -> None:
        super().__init__(context)
        self.tokens_at, self.every, self.perplexity = tokens_at, every, perplexity

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **more: Any
    ) -> None:
        """Called by the trainer after each optimizer step with that step's metrics."""
        if logs is not None and "loss" in logs:
            added: dict[str, float] = {"num_tokens": self.tokens_at(state.global_step) - self.tokens_before}
            if self.every is not None and state.global_step % self.every == 0:
                added["held_out_perplexity"] = self.perplexity(more["model"])
            logs |= added
            state.log_history[-1] |= added
        super().on_log(args, state, control, logs=logs, **more)


def tokens_by_step(settings: PretrainStage, rows: int) -> Callable[[int], int]:
    """How many tokens of the rows have been trained on after so many optimizer steps."""
    together = settings.batch_size * settings.gradient_accumulation
    per_epoch = math.ceil(math.ceil(rows / settings.batch_size) / settings.gradient_accumulation)

    def tokens(step: int) -> int:
        epochs, rest = divmod(step, per_epoch)
        return (epochs * rows + min(rest * together, rows)) * settings.max_length

    return tokens


def make_trainer(
    settings: PretrainStage, context: StageContext, model: Any, rows: PackedRows, callback: StageCallback, routed: bool
) -> PretrainTrainer:
    """The trainer of ``model`` on rows, its optimizer as ``settings`` say."""
    arguments = TrainingArguments(
        **shared_arguments(settings, context),
        num_train_epochs=settings.epochs,
        gradient_accumulation_steps=settings.gradient_accumulation,
        adam_beta2=settings.adam_beta2,
        remove_unused_columns=False,
    )
    trainer = PretrainTrainer(
        model=model, args=arguments, train_dataset=rows, data_collator=stacked, callbacks=[callback]
    )
    trainer.settings, trainer.routed = settings, routed
    return trainer
