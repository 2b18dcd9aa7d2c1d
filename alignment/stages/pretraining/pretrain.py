"""Pretraining: the likelihood of every token of a corpus, from nothing or by a whole model that reads on.

All weights are trained, in float32 (:func:`alignment.models.load.load_policy`), on documents that stand in rows one
behind another. What a model has learned is measured on documents that were held out.
"""

import json
import logging
import math
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from alignment.chat import load_tokenizer
from alignment.data.corpus import read_corpus
from alignment.distributed.accumulation import label_count
from alignment.distributed.fsdp import whole_state
from alignment.durable_files import write_text
from alignment.errors import StageError
from alignment.models.adapters import is_adapter
from alignment.models.device import pick_device
from alignment.models.families import check_rope
from alignment.models.load import load_policy, save_policy
from alignment.recipe.base import BASE
from alignment.recipe.stages.pretraining.pretrain import PretrainStage
from alignment.stage import StageContext, StageResult
from alignment.training.callback import StageCallback
from alignment.training.curves import final_metrics, write_curves
from alignment.training.fit import fit
from alignment.training.packing import check_packing
from alignment.training.pretraining.architecture import new_config
from alignment.training.pretraining.experts import ExpertLoad, load_alarm, load_metrics
from alignment.training.pretraining.held_out import document_likelihoods, held_out_perplexity, perplexity_of
from alignment.training.pretraining.rows import PackedRows, encode_document, pack
from alignment.training.pretraining.trainer import PretrainCallback, make_trainer, tokens_by_step
from alignment.training.response_head import add_response_head
from alignment.training.row_counts import log_counts
from alignment.training.setup import seed_everything

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Texts:
    """Rows to train on, held-out rows, what they were made of, and the bytes of the held-out documents."""

    train: PackedRows
    held_out: PackedRows
    counts: dict[str, float]
    held_out_bytes: int


def run(settings: PretrainStage, context: StageContext) -> StageResult:
    """Trains it on the documents that are not held out.

    Raises StageError where these do not fill a row, a model that reads on is an adapter, or isolated documents would
    see each other.
    """
    seed_everything(context.run)
    model, tokenizer = _beginning(settings, context)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    check_rope(model.config, settings.max_length)
    if settings.isolated:
        check_packing(model)
    texts = _texts(settings, context, tokenizer)
    log_counts(context, texts.counts)
    coefficient = _router_loss(settings, model)
    add_response_head(model, statistics=False)

    def likelihoods(asked: Any) -> Any:
        narrow = context.run.model.dtype == "bfloat16"
        return document_likelihoods(asked, texts.held_out, settings.batch_size // context.workers, bfloat16=narrow)

    def trainer(callback: StageCallback) -> Any:
        return make_trainer(settings, context, model, texts.train, callback, routed=coefficient > 0)

    callback = PretrainCallback(
        context,
        tokens_by_step(settings, len(texts.train)),
        settings.evaluate_every,
        lambda asked: float(perplexity_of(likelihoods(asked).sum(0))),
    )
    fitted = fit(
        model, trainer, settings, context, callback=callback, batch_size=settings.batch_size, units=label_count
    )
    experts = ExpertLoad()
    with context.working(), experts.counting(fitted.model):
        documents = likelihoods(fitted.model)
        measured = held_out_perplexity(documents, context.run.seed)
    state = whole_state(fitted.model, trained_only=True)
    if context.rank > 0:
        return StageResult("model", {})
    dtype = getattr(torch, context.run.model.dtype)
    save_policy(fitted.model, tokenizer, None, context.output, state=state, dtype=dtype)
    write_curves(fitted.curves, context.output)
    _tell_of_experts(experts.loads(), context)
    metrics = final_metrics(fitted.curves) | texts.counts | load_metrics(experts.loads())
    metrics |= {
        "mean_loss": fitted.mean_loss,
        "perplexity": measured.value,
        "perplexity.low": measured.low,
        "perplexity.high": measured.high,
        "bits_per_byte": float(documents[:, 0].sum()) / math.log(2) / texts.held_out_bytes,
        "parameters": float(parameters),
    }
    return StageResult("model", metrics, fitted.curves, fitted.tokens)


def _beginning(settings: PretrainStage, context: StageContext) -> tuple[Any, PreTrainedTokenizerBase]:
    """The model in float32 and in training mode, and its tokenizer."""
    if settings.model is not None:
        start = context.inputs[settings.model]
        if is_adapter(start):
            raise StageError(f"{start.ref()} is an adapter, and pretraining trains all weights: name a whole model")
        base = context.inputs.get(BASE, start)
        return load_policy(start, base, context.run, trainable=True, placed=not context.sharded, masters=True)
    assert settings.tokenizer is not None  # the settings' own rule
    assert settings.architecture is not None
    tokenizer = load_tokenizer(context.inputs[settings.tokenizer].path)
    config = new_config(settings.architecture, tokenizer, settings.max_length)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if not context.sharded:
        model = model.to(pick_device(context.run.resources))
    return model.train(), tokenizer


def _texts(settings: PretrainStage, context: StageContext, tokenizer: PreTrainedTokenizerBase) -> _Texts:
    """The corpus as rows. Raises StageError where there are none to train on, or nothing is held out."""
    corpus = read_corpus(context.data["corpus"])
    train, held_out = corpus.split(settings.held_out)
    if not held_out:
        raise StageError("the corpus has a single document, so none is held out: give more documents")
    length = settings.max_length
    packed = pack((encode_document(tokenizer, document) for document in train), length)
    if not len(packed.tokens):
        raise StageError(f"{packed.left} tokens of the corpus do not fill a row of max_length={length}; lower it")
    filler = tokenizer.pad_token_id
    asked = pack((encode_document(tokenizer, document) for document in held_out), length, filler=filler)
    counts = {
        "documents": float(len(train)),
        "held_out_documents": float(len(held_out)),
        "duplicates": float(corpus.duplicates),
        "rows": float(len(packed.tokens)),
        "tokens": float(packed.tokens.numel()),
        "tokens_left": float(packed.left),
    }
    return _Texts(
        PackedRows(packed, isolated=settings.isolated),
        PackedRows(asked, isolated=settings.isolated),
        counts,
        sum(len(document.encode()) for document in held_out),
    )


def _tell_of_experts(loads: list[list[float]], context: StageContext) -> None:
    """Writes the loads of a mixture's experts, and says in the log which are starved."""
    if not loads:
        return
    write_text(context.output / "experts.json", json.dumps(loads))
    if (alarm := load_alarm(loads)) is not None:
        _log.warning("%s: %s", context.name, alarm)


def _router_loss(settings: PretrainStage, model: Any) -> float:
    """The coefficient of the routers' loss, set in the model's configuration too; 0 where it has no routers."""
    text = model.config.get_text_config()
    usual = getattr(text, "router_aux_loss_coef", None)
    if usual is None:
        if settings.router_loss:
            raise StageError(f"router_loss={settings.router_loss:g}, and {text.model_type} computes no loss of routers")
        return 0.0
    if settings.router_loss is not None:
        text.router_aux_loss_coef = settings.router_loss
    return float(text.router_aux_loss_coef)
