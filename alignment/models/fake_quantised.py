"""Quantisation-aware training: linear layers that round their weights in each pass, by torchao's fake quantisers.

A layer keeps its weights as they are, under their names: they are what is trained and saved. The rounding has the
gradient of the identity (Bengio et al. 2013).
"""

from collections.abc import Iterator
from typing import Any

import torch

from alignment.errors import StageError
from alignment.models.quantised import EXTRA, missing_library

GROUPS = (128, 64, 32)  # weights of a row that share a scale at 4 bits, as the stage `quantise` takes them
Q4_1 = 32  # llama.cpp's block


def fake_quantise(model: Any, scheme: str) -> None:
    """Has all linear layers of a model but its head round their weights as ``scheme`` (of the stage `quantise`) does.

    Raises StageError where torchao is not installed, the model has no such layers, or their rows make no whole groups.
    """
    if missing_library("torchao") is not None:
        raise StageError(f"qat rounds by torchao, which is not installed: run {EXTRA}")
    from torchao.quantization.qat.linear import FakeQuantizedLinear

    found = list(_linear_layers(model))
    if not found:
        raise StageError(f"a {model.config.model_type} has no linear layers that qat could round: leave it out")
    widths = sorted({layer.in_features for _owner, _name, layer in found})
    config = _config(scheme, widths)
    for owner, name, layer in found:
        rounded = FakeQuantizedLinear.from_linear(layer, weight_config=config)
        setattr(owner, name, rounded.train(layer.training))


def group_of(scheme: str, widths: list[int]) -> int | None:
    """The weights that share a scale in rows of ``widths``; None where rows make no whole groups."""
    sizes = (Q4_1,) if scheme == "q4_1" else GROUPS
    return next((size for size in sizes if all(width % size == 0 for width in widths)), None)


def _config(scheme: str, widths: list[int]) -> Any:
    from torchao.quantization.qat import IntxFakeQuantizeConfig
    from torchao.quantization.qat.fake_quantize_config import Int4WeightFakeQuantizeConfig

    if scheme == "int8":
        return IntxFakeQuantizeConfig(torch.int8, granularity="per_channel", is_symmetric=True)
    group = group_of(scheme, widths)
    if group is None:
        raise StageError(f"qat={scheme} rounds groups of weights, and rows here have {widths}: take int8")
    return Int4WeightFakeQuantizeConfig(group_size=group, activation_dtype=torch.bfloat16)


def _linear_layers(model: Any) -> Iterator[tuple[torch.nn.Module, str, torch.nn.Linear]]:
    """Each plain linear layer but the head, with the module and the name that it is under."""
    head = model.get_output_embeddings()
    for owner in model.modules():
        for name, layer in owner.named_children():
            if type(layer) is torch.nn.Linear and layer is not head:
                yield owner, name, layer
