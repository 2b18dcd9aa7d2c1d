"""Reward models: a trunk with a score head of one output, new or loaded, and their scores.

The head is in float32 whatever the trunk computes in: a bfloat16 score has 8 bits, so that answers of about the same
worth are exact ties.
"""

import inspect
import math
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutputWithPast
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
)

from alignment.chat import load_tokenizer
from alignment.errors import NotFiniteError, StageError
from alignment.models.adapters import merged
from alignment.models.device import pick_device
from alignment.models.encoders.architecture import is_encoder, output_layer
from alignment.models.encoders.model import load_encoder, narrow_encoder
from alignment.models.families.head import trunk_of
from alignment.models.load import attend, load_policy
from alignment.models.prefix_sharing import share_prefixes
from alignment.models.weights import require_all, require_finite
from alignment.recipe.run_settings import RunSettings
from alignment.records import Artifact


class ScoreHead(nn.Linear):
    """A linear layer in float32, under autocast as well."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden (…, D) of any float format → scores (…, 1), float32."""
        with torch.autocast(hidden.device.type, enabled=False):
            return nn.functional.linear(hidden.float(), self.weight.float())


@torch.inference_mode(False)
def load_reward_model(
    artifact: Artifact, run: RunSettings, *, placed: bool = True
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A reward model (whole weights, one label) and its tokenizer, in evaluation mode; on its device if ``placed``."""
    config = AutoConfig.from_pretrained(artifact.path)
    if is_encoder(config):
        return load_encoder(Path(artifact.path), run, placed=placed)
    kind = score_class(config)
    model, loaded = kind.from_pretrained(artifact.path, dtype=getattr(torch, run.model.dtype), output_loading_info=True)
    require_all(loaded["missing_keys"], artifact.path)
    attend(model, run.model.attention)
    _widen_head(model, _saved_head(Path(artifact.path)))
    score_last_tokens(model)
    share_prefixes(model)  # several answers to one prompt are the rule where rewards are asked for
    if placed:
        model.to(pick_device(run.resources))
    require_finite(model.named_parameters(), str(artifact.ref()))
    return model.eval(), load_tokenizer(artifact.path)


@torch.inference_mode(False)
def new_reward_model(
    artifact: Artifact, base: Artifact, run: RunSettings, *, placed: bool = True, masters: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A reward model whose trunk is a policy's (merged, in plain numbers) and whose score head starts at zero.

    A zero head makes every first score 0 and the first loss ln 2, and leaves nothing to a random draw. With ``masters``
    the trunk is in float32, too, for a training of all weights.
    """
    policy, tokenizer = load_policy(artifact, base, run, placed=placed, masters=masters, plain=True)
    trunk = merged(policy, str(artifact.ref()))
    config = _reward_config(trunk, tokenizer)
    model = score_class(config)._from_config(config, dtype=trunk.dtype)
    attend(model, run.model.attention)
    amiss = trunk_of(model).load_state_dict(trunk_of(trunk).state_dict(), strict=False)
    if lost := [name for name in (*amiss.missing_keys, *amiss.unexpected_keys) if "pooler" not in name]:
        raise StageError(f"{type(model).__name__} has another trunk than {type(trunk).__name__}: {', '.join(lost[:3])}")
    _widen_head(model, torch.zeros_like(model.score.weight))
    score_last_tokens(model)
    return model.to(trunk.device), tokenizer


def score_class(config: Any) -> Any:
    """The class of models of this configuration with a score head, made where transformers has none with one.

    A made class has the names of weights that transformers' own have, and is known in this process alone.
    """
    kind = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), None)
    if kind is not None and "self.score = " in inspect.getsource(kind):
        return kind
    if kind is not None and issubclass(kind, GenericForSequenceClassification):
        return kind
    causal = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    kin = next(base for base in causal.__mro__ if base.__name__.endswith("PreTrainedModel"))
    stem = causal.__name__.removesuffix("ForCausalLM").removesuffix("LMHeadModel")
    own = {"__module__": __name__, "config_class": type(config)}  # its kin may take that of a model with images too
    return type(f"{stem}ForSequenceClassification", (GenericForSequenceClassification, kin), own)


def score_last_tokens(model: Any) -> None:
    """Has a model with a score head score each row's last token by the attention mask.

    Transformers takes the last token that is not the pad token. Where that is EOS, as in tokenizers with one special
    token (GPT-2, OLMo, Phi), it would be the one before the answer's end.
    """
    model.forward = types.MethodType(_forward, model)


def _forward(
    self: Any, input_ids: Any = None, attention_mask: Any = None, labels: Any = None, **kwargs: Any
) -> SequenceClassifierOutputWithPast:
    output = trunk_of(self)(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
    scores = self.score(output.last_hidden_state)
    rows, width = scores.shape[:2]
    if attention_mask is None:
        last = torch.full((rows,), width - 1, device=scores.device)
    else:
        places = torch.arange(width, device=scores.device)
        last = (places * attention_mask.to(scores.device).bool()).argmax(-1)
    scores_of_rows = scores[torch.arange(rows, device=scores.device), last]
    loss = None
    if labels is not None:
        loss = self.loss_function(logits=scores, labels=labels, pooled_logits=scores_of_rows, config=self.config)
    return SequenceClassifierOutputWithPast(
        loss=loss, logits=scores_of_rows, hidden_states=getattr(output, "hidden_states", None)
    )


def narrow_trunk(model: Any, dtype: torch.dtype) -> None:
    """Casts all weights but the head's, as they are in a reward model that is loaded."""
    if is_encoder(model.config):
        narrow_encoder(model, dtype)
        return
    weight = model.score.weight.detach().float()
    model.to(dtype)
    _widen_head(model, weight)


def last_layer(model: Any) -> nn.Linear:
    """The linear layer whose one output is the score."""
    layer: nn.Linear = output_layer(model) if is_encoder(model.config) else model.score
    return layer


def widen_own_head(model: Any, folder: Path) -> None:
    """Gives a model from outside its head in float32, as it was saved, where it is a plain layer called ``score``."""
    head = getattr(model, "score", None)
    if isinstance(head, nn.Linear) and head.bias is None:
        _widen_head(model, _saved_head(folder))


def _widen_head(model: Any, weight: torch.Tensor) -> None:
    """Gives a model a head in float32 with these weights (1, D)."""
    head = ScoreHead(weight.shape[1], weight.shape[0], bias=False, device=model.device, dtype=torch.float32)
    with torch.no_grad():
        head.weight.copy_(weight)
    model.score = head


def _saved_head(folder: Path) -> torch.Tensor:
    """The head's weights as they were saved, which loading casts to the trunk's format."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            if "score.weight" in file.keys():  # noqa: SIM118  # it is no dict
                weight: torch.Tensor = file.get_tensor("score.weight")
                return weight.float()
    raise StageError(f"{folder} holds no score head: it is no reward model")


def _reward_config(trunk: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> object:
    config = type(trunk.config).from_dict(trunk.config.to_dict())
    config.num_labels = 1
    name_padding(config, tokenizer)
    config.name_or_path = trunk.config.name_or_path
    return config


def name_padding(config: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Writes the pad token into a score model's configuration, by which transformers finds the end of a text.

    Not where it is EOS: whoever loads the model elsewhere may then score one text at a time, and no batch wrongly. An
    encoder scores its first token, and its configuration names the pad token that its positions are counted by.
    """
    if is_encoder(config):
        return
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id != tokenizer.eos_token_id else None
    config.get_text_config().pad_token_id = config.pad_token_id = pad


def score(model: Any, tokenizer: Any, sequences: list[list[int]], *, batch_size: int = 32) -> list[float]:
    """The reward of each token sequence (prompt and answer, EOS included), in the order given.

    Raises NotFiniteError for a score that is none.
    """
    scores: list[float] = pooled(model, tokenizer, sequences, batch_size=batch_size).squeeze(-1).tolist()
    for tokens, value in zip(sequences, scores, strict=True):
        if not math.isfinite(value):
            raise NotFiniteError(f"the reward model gave {value} to a text of {len(tokens)} tokens")
    return scores


@torch.inference_mode()
def pooled(
    model: Any,
    tokenizer: Any,
    sequences: list[list[int]],
    *,
    batch_size: int,
    heard: Callable[[int], None] = lambda _done: None,
) -> torch.Tensor:
    """What the head gives at each sequence's last token: (N, outputs) float32 on the processor, in the order given.

    Sorted by length inside, so that padding costs little; right-padded, as in training. The model is in evaluation mode
    afterwards. ``heard`` is told after each batch how many sequences are done.
    """
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    rows: list[torch.Tensor] = []
    model.eval()
    for begin in range(0, len(order), batch_size):
        chunk = order[begin : begin + batch_size]
        batch = tokenizer.pad({"input_ids": [sequences[i] for i in chunk]}, return_tensors="pt").to(model.device)
        rows.append(model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float().cpu())
        heard(begin + len(chunk))
    places = torch.tensor(order).argsort()
    return torch.cat(rows)[places]
