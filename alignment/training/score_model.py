"""The head and tail of every stage that trains a model with one score: reward models and pair classifiers.

The trunk is a policy's that training starts from, its adapter merged, or an encoder of the stage's own; the saved model
is whole: an artifact that anyone can load and score with, on no other base than its own.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from transformers import PreTrainedTokenizerBase

from alignment.chat import template_digest
from alignment.distributed.fsdp import whole_model
from alignment.durable_files import write_text
from alignment.evaluation.held_out_pairs import HeldOutFigures
from alignment.models.adapters import adapt, merged
from alignment.models.encoders.files import encoder_folder
from alignment.models.encoders.model import new_encoder
from alignment.models.families import check_rope
from alignment.models.reward_model import name_padding, narrow_trunk, new_reward_model
from alignment.models.weights import require_finite
from alignment.recipe.base import BASE, AdapterSettings
from alignment.recipe.stages.scoring import ENCODER, EncoderSettings
from alignment.stage import StageContext, StageResult
from alignment.text_rules.encoder import reads_as_encoder
from alignment.training.curves import Curves, final_metrics, write_curves
from alignment.training.dropout import configured_dropout, switch_off_dropout
from alignment.training.setup import seed_everything


class ScoreModelSettings(Protocol):
    """What a stage's settings say of the model that it trains."""

    @property
    def model(self) -> str: ...
    @property
    def encoder(self) -> EncoderSettings | None: ...
    def adapter_trained(self) -> AdapterSettings | None: ...
    def trained_part(self) -> AdapterSettings | None: ...
    @property
    def max_length(self) -> int: ...


@dataclass(frozen=True, slots=True)
class ScoreOutcome:
    """What a training leaves beside weights. ``files`` are further files of the artifact, by name, as text."""

    curves: Curves
    metrics: Mapping[str, float]
    tokens_trained: int
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ScoreTraining:
    """A model with one score that is about to be trained; ``make`` makes it anew, on its device."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    make: Callable[[], Any]
    context: StageContext

    def finish(
        self, kind: str, trained: Any, evaluate: Callable[[Any], HeldOutFigures], outcome: ScoreOutcome
    ) -> StageResult:
        """Merges the adapter, measures the model and writes it. Every worker has to come here; rank 0 alone writes.

        ``trained`` is the model as its trainer wrapped it.
        """
        context = self.context
        whole = whole_model(trained, self.make, context)
        if context.rank > 0:
            return StageResult(kind, {})
        whole = merged(whole, context.name)
        narrow_trunk(whole, getattr(torch, context.run.model.dtype))
        with context.working():
            held_out = evaluate(whole)
        require_finite(whole.named_parameters(), context.name)
        name_padding(whole.config, self.tokenizer)  # a trainer writes its own
        with configured_dropout(whole):
            whole.save_pretrained(context.output)
        self.tokenizer.save_pretrained(context.output)
        write_curves(outcome.curves, context.output)
        write_text(context.output / "held_out.json", json.dumps(held_out.detail, indent=1))
        if not reads_as_encoder(self.tokenizer):
            write_text(context.output / "chat_template.sha256", template_digest(self.tokenizer) + "\n")
        for name, text in outcome.files.items():
            write_text(context.output / name, text)
        metrics = final_metrics(outcome.curves) | dict(held_out.metrics) | dict(outcome.metrics)
        return StageResult(kind, metrics, outcome.curves, tokens_trained=outcome.tokens_trained)


def begin_score_model(
    settings: ScoreModelSettings, context: StageContext, *, problem_type: str | None = None
) -> ScoreTraining:
    """Seeds, and makes a model whose score is 0 everywhere, with the adapter that the stage asks for.

    ``problem_type`` is transformers' name of the loss that the model computes itself.
    """
    seed_everything(context.run)
    begin = _beginning(settings, context)

    def make(*, placed: bool = True) -> tuple[Any, PreTrainedTokenizerBase]:
        model, tokenizer = begin(placed)
        if problem_type is not None:
            model.config.problem_type = problem_type
        return adapt(model, settings.trained_part(), tokenizer, reward=True), tokenizer

    model, tokenizer = make(placed=not context.sharded)
    check_rope(model.config, settings.max_length)
    return ScoreTraining(model, tokenizer, lambda: make()[0], context)


def _beginning(
    settings: ScoreModelSettings, context: StageContext
) -> Callable[[bool], tuple[Any, PreTrainedTokenizerBase]]:
    """Makes the model that training starts from, on its device if told so."""
    masters = settings.adapter_trained() is None
    if settings.encoder is not None:
        folder = encoder_folder(settings.encoder, context.data.get(ENCODER))

        def make(placed: bool) -> tuple[Any, PreTrainedTokenizerBase]:
            model, tokenizer = new_encoder(folder, context.run, settings.max_length, placed=placed, masters=masters)
            switch_off_dropout(model)  # encoders come with it, and a step is to be the same however it is shared
            return model, tokenizer

        return make
    start, base = context.inputs[settings.model], context.inputs[BASE]
    return lambda placed: new_reward_model(start, base, context.run, placed=placed, masters=masters)
