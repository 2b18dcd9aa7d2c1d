"""A model's own way from its trunk's last hidden states to its logits, whatever lies between.

Families differ there: a transform before the product (BERT), a cap after it (Gemma 2, RecurrentGemma), a scale (Cohere,
Granite, Falcon-H1). None of it is written again here. The model's own ``forward`` is run with a trunk that hands it the
states that it is given, so that logits of a few places are the model's by construction, and what its forward makes of a
router's scores with them. Whether there is anything beside the product is found by trying, at states so large that a
cap must show: names of settings would miss the next family.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from alignment.models.seq2seq.architecture import is_encoder_decoder

ROWS, LARGEST = 4, (1.0, 1000.0)  # states that are tried, and their largest logit
TOKENS = 5  # of the pass that is compared
CLOSE = {torch.float32: 1e-4, torch.float64: 1e-6}  # of the largest logit
CLOSE_ELSEWHERE = 2e-2
_KIND = "_kind_of_head"


class HeadKind(StrEnum):
    """How logits come from hidden states."""

    PLAIN = "plain"
    """They are ``states @ weight.T + bias``, and nothing else."""
    OWN = "own"
    """They follow from the states alone, in the model's own way: :func:`own_logits`."""
    WHOLE = "whole"
    """They need the whole forward pass."""


def trunk_of(model: Any) -> Any:
    """The part of a model (without PEFT's wrapper) that makes its last hidden states."""
    trunk = model.base_model
    if trunk is not model:
        return trunk
    # Some classes are named for a part of a larger model and hold their trunk under another name (Llama 4's).
    return next((child for child in model.children() if isinstance(child, PreTrainedModel)), model)


def head_kind(model: Any) -> HeadKind:
    """The kind of a causal model's head, tried once and remembered with the model (and in its copies)."""
    if is_encoder_decoder(model.config):
        return HeadKind.WHOLE  # its pass takes a prompt and an answer (alignment/models/seq2seq/passes.py)
    known = getattr(model, _KIND, None)
    if known is None:
        # Parts of weights cannot be tried by one worker; the model's own way is right wherever there is one.
        sharded = any(isinstance(parameter, DTensor) for parameter in model.parameters())
        known = HeadKind.OWN if sharded else _tried(model)
        setattr(model, _KIND, known)
    return HeadKind(known)


def own_logits(model: Any, states: torch.Tensor) -> torch.Tensor:
    """states (…, D), the trunk's last → logits (…, V) by the model's own forward, with its gradients."""
    logits: torch.Tensor = own_output(model, states.reshape(1, -1, states.shape[-1])).logits
    return logits.reshape(*states.shape[:-1], logits.shape[-1])


def own_output(model: Any, states: torch.Tensor, *, router_logits: Any = None, mask: torch.Tensor | None = None) -> Any:
    """What a causal model's forward gives for last hidden states (B, T, D).

    With ``router_logits``, as the trunk gave them for tokens of which ``mask`` (B', T') says which are no padding, its
    ``aux_loss`` is that of its routers.
    """
    options: dict[str, Any] = {} if router_logits is None else {"output_router_logits": True, "attention_mask": mask}
    ids = torch.zeros(states.shape[:2], dtype=torch.long, device=states.device)
    with _given(model, _TrunkOutput(states, router_logits)):
        return type(model).forward(model, input_ids=ids, **options)


class _TrunkOutput:
    """A trunk's output that has the last hidden states, and None for all else."""

    def __init__(self, states: torch.Tensor, router_logits: Any) -> None:
        self.last_hidden_state, self.router_logits = states, router_logits

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)

    def __getitem__(self, place: Any) -> Any:
        return (self.last_hidden_state,)[place]

    def __len__(self) -> int:
        return 1


class _GivenTrunk(nn.Module):
    """Stands in a trunk's place and gives one output; what else is asked of it, the trunk answers."""

    def __init__(self, trunk: Any, output: _TrunkOutput) -> None:
        super().__init__()
        self.__dict__ |= {"trunk": trunk, "output": output}  # no part of this module: none of it is called

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.__dict__["trunk"], name)
        return self if isinstance(value, PreTrainedModel) else value  # some call a part of it (OPT's decoder)

    def forward(self, *_args: Any, **_kwargs: Any) -> Any:
        return self.output


@contextmanager
def _given(model: Any, output: _TrunkOutput) -> Iterator[None]:
    trunk = trunk_of(model)
    name = next(name for name, child in model.named_children() if child is trunk)
    model._modules[name] = _GivenTrunk(trunk, output)
    try:
        yield
    finally:
        model._modules[name] = trunk


@torch.no_grad()
def _tried(model: Any) -> HeadKind:
    modes = [(module, module.training) for module in model.modules()]  # some layers may be in another than the model
    model.eval()
    try:
        if not _follows_from_states(model):
            return HeadKind.WHOLE
        return HeadKind.PLAIN if _is_plain(model) else HeadKind.OWN
    finally:
        for module, training in modes:
            module.training = training


def _follows_from_states(model: Any) -> bool:
    """Whether the model's logits of a few tokens are those of its trunk's last hidden states."""
    ids = torch.arange(1, TOKENS + 1, device=model.device)[None]
    trunk = trunk_of(model)
    if all(child is not trunk for child in model.children()):
        return False
    expected = type(model).forward(model, input_ids=ids, use_cache=False).logits
    states = getattr(trunk(input_ids=ids, use_cache=False), "last_hidden_state", None)
    return states is not None and _close(own_logits(model, states), expected)


def _is_plain(model: Any) -> bool:
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        return False
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(ROWS, head.in_features, generator=generator).to(head.weight)
    product = nn.functional.linear(states, head.weight, head.bias)
    states = states / product.abs().max()
    return all(
        _close(own_logits(model, states * size), nn.functional.linear(states * size, head.weight, head.bias))
        for size in LARGEST
    )


def _close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    if found.shape != expected.shape:
        return False
    share = CLOSE.get(expected.dtype if found.dtype == expected.dtype else torch.bfloat16, CLOSE_ELSEWHERE)
    return torch.allclose(found.float(), expected.float(), rtol=0, atol=share * expected.float().abs().max().item())
