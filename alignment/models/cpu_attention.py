"""Attention whose backward pass is quick on a processor.

PyTorch's fused attention runs backward in bfloat16 several times slower on a CPU than in float32: 78 ms against 23 for
32 answers of 80 tokens on one core, more than all of the layer's matrix products. So training passes widen queries,
keys and values first. Other devices, other dtypes and passes without gradients are left alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_float32"


def _attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **options: Any
) -> tuple[torch.Tensor, None]:
    options = {name: _widened(option) for name, option in options.items()}  # a bias by distance (T5's) among them
    with torch.autocast(query.device.type, enabled=False):  # it would narrow them again
        wide = (query.float(), key.float(), value.float(), _widened(attention_mask))
        output, _ = sdpa_attention_forward(module, *wide, **options)
    return output.to(query.dtype), None


def _widened(value: Any) -> Any:
    """A mask or bias that is added to scores, in float32; anything else as it is."""
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


@contextmanager
def quick_backward(*models: Any, autocast: bool = False) -> Iterator[None]:
    """Models in bfloat16 on a CPU attend in float32 for as long as the context lasts.

    ``autocast``: they are called under bfloat16 autocast, whatever their weights are in.
    """
    slow = [
        model
        for model in models
        if model.device.type == "cpu"
        and (autocast or model.dtype == torch.bfloat16)
        and model.config._attn_implementation == "sdpa"
    ]
    for model in slow:
        model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        for model in slow:
            model.set_attn_implementation("sdpa")
