"""Encoders that score: begun anew from an encoder's folder, or loaded from an artifact.

The score is the encoder's own: its pooled first token (or what its configuration says) through its own classification
head. All parts of the head are in float32 whatever the trunk computes in, and are trained whole beside an adapter. Its
last layer starts at zero, so that every first score is 0; parts that the folder does not hold are drawn by the recipe's
seed.
"""

import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from alignment.errors import Fault, InputError, StageError
from alignment.models.device import pick_device
from alignment.models.encoders.architecture import head_parts, head_weights, longest_text, output_layer
from alignment.models.weights import require_finite
from alignment.recipe.run_settings import RunSettings
from alignment.text_rules.encoder import pair_frame

UNBOUNDED = 10**9  # tokens: transformers' own number where a tokenizer names none is greater still


def load_encoder_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """An encoder's tokenizer, by which conversations are written as :mod:`alignment.text_rules.encoder` says.

    Raises InputError where it writes no control tokens around a pair of texts, or has no pad token.
    """
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    tokenizer.chat_template = None  # an encoder was never trained on one
    tokenizer.padding_side = "right"
    if pair_frame(tokenizer) is None:
        problem = "its tokenizer writes no control tokens before, between and behind a pair of texts"
        raise InputError([Fault(problem, "give an encoder such as BERT, RoBERTa or ModernBERT", str(folder))])
    if tokenizer.pad_token is None:
        remedy = "name one in its tokenizer_config.json"
        raise InputError([Fault("its tokenizer has no pad token", remedy, str(folder))])
    return tokenizer


def new_encoder(
    folder: Path, run: RunSettings, max_length: int, *, placed: bool = True, masters: bool = False
) -> tuple[Any, PreTrainedTokenizerBase]:
    """An encoder from a folder, with a head whose scores are 0, and its tokenizer, which cuts at ``max_length``.

    With ``masters`` the trunk is in float32, too, for a training of all weights. Raises StageError where the folder
    lacks weights of the encoder itself.
    """
    dtype = torch.float32 if masters else getattr(torch, run.model.dtype)
    tokenizer = load_encoder_tokenizer(folder)
    with torch.random.fork_rng(devices=[]), _without_load_report():
        torch.manual_seed(run.seed)
        model, loaded = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=dtype, num_labels=1, ignore_mismatched_sizes=True, output_loading_info=True
        )
    if missing := missing_weights(model, loaded["missing_keys"]):
        raise StageError(f"{folder} does not hold {missing[0]}, which the encoder needs: it would be drawn at random")
    model.config.problem_type = None
    widen_head(model)
    with torch.no_grad():
        for parameter in output_layer(model).parameters():
            parameter.zero_()
    tokenizer.model_max_length = min(
        max_length, tokenizer.model_max_length or UNBOUNDED, longest_text(model) or UNBOUNDED
    )
    model = _ready(model, tokenizer, run, placed=placed)
    require_finite(model.named_parameters(), str(folder))
    return model, tokenizer


@contextmanager
def _without_load_report() -> Iterator[None]:
    """A head that is new is as it should be: transformers warns of it at length."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)


def load_encoder(folder: Path, run: RunSettings, *, placed: bool = True) -> tuple[Any, PreTrainedTokenizerBase]:
    """A trained encoder that scores, and its tokenizer, in evaluation mode.

    Raises StageError where a weight is missing.
    """
    dtype = getattr(torch, run.model.dtype)
    model, loaded = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    if missing := sorted(loaded["missing_keys"]):
        raise StageError(f"{folder} holds no {missing[0]}: it is no reward model")
    widen_head(model)
    _restore_head(model, folder)
    tokenizer = load_encoder_tokenizer(folder)
    require_finite(model.named_parameters(), str(folder))
    return _ready(model, tokenizer, run, placed=placed).eval(), tokenizer


def without_weights(config: Any) -> Any:
    """The encoder of a configuration with a head of one output, on PyTorch's meta device."""
    single = type(config).from_dict(config.to_dict())
    single.num_labels = 1
    with init_empty_weights():
        return AutoModelForSequenceClassification.from_config(single)


def missing_weights(model: Any, missing: Any) -> list[str]:
    """The names among ``missing`` that are of the encoder itself, not of its head."""
    head = {name for name, _weight in head_weights(model)}
    return sorted(name for name in missing if name not in head)


def widen_head(model: Any) -> None:
    """Has all parts of a model's head computed in float32, under autocast as well."""
    for part in head_parts(model).values():
        part.float()
        part.forward = types.MethodType(_in_float32, part)


def narrow_encoder(model: Any, dtype: torch.dtype) -> None:
    """Casts all weights but the head's, as they are in an encoder that is loaded."""
    head = {name for name, _weight in head_weights(model)}
    for name, parameter in model.named_parameters():
        if name not in head:
            parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype


def _in_float32(self: nn.Module, hidden: torch.Tensor, *arguments: Any, **options: Any) -> Any:
    kind = next(kind for kind in type(self).__mro__ if "forward" in vars(kind))
    with torch.autocast(hidden.device.type, enabled=False):
        return vars(kind)["forward"](self, hidden.float(), *arguments, **options)


def _restore_head(model: Any, folder: Path) -> None:
    """Gives the head its weights as they were saved, which loading cast to the trunk's format."""
    wanted = dict(head_weights(model))
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file, torch.no_grad():
            for name in set(file.keys()) & wanted.keys():
                wanted[name].copy_(file.get_tensor(name).float())


def _ready(model: Any, tokenizer: PreTrainedTokenizerBase, run: RunSettings, *, placed: bool) -> Any:
    """The model with the segments that its tokenizer writes, on its device if ``placed``."""
    frame = pair_frame(tokenizer)
    assert frame is not None
    model.separator = frame.after[-1]
    # Sharding takes a model layer by layer, and input embeddings by themselves: they are no layer beside that.
    model._no_split_modules = [name for name in model._no_split_modules or () if "Embeddings" not in name]
    model.forward = types.MethodType(_forward, model)
    return model.to(pick_device(run.resources)) if placed else model


def _forward(self: Any, input_ids: Any = None, attention_mask: Any = None, **options: Any) -> Any:
    """The model's own pass; where it tells a pair's texts apart (BERT), the answer is the second."""
    options.pop("use_cache", None)  # TRL's trainer passes it to every model
    if getattr(self.config, "type_vocab_size", 0) > 1 and options.get("token_type_ids") is None:
        options["token_type_ids"] = answer_segment(input_ids, attention_mask, self.separator)
    return type(self).forward(self, input_ids=input_ids, attention_mask=attention_mask, **options)


def answer_segment(ids: torch.Tensor, mask: torch.Tensor | None, separator: int) -> torch.Tensor:
    """(B, T) token ids and their mask → 1 at the answer's tokens, 0 elsewhere: what follows the last separator that has
    something behind it, the end of a finished answer included."""
    kept = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    places = torch.arange(ids.shape[1], device=ids.device)
    last = (places * kept).argmax(-1, keepdim=True)
    parts = (ids == separator) & kept & (places < last)
    begin = torch.where(parts.any(-1, keepdim=True), (places * parts).argmax(-1, keepdim=True), -1)
    return ((places > begin) & kept).to(ids.dtype)
