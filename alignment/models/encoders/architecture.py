"""What an encoder is made of: which configurations are of one, how much it reads, which of its parts are its head."""

from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
)

POOLER = "pooler"  # of a trunk, in families whose head begins there (BERT)


def is_encoder(config: Any) -> bool:
    """Whether models of this configuration read a text both ways and can classify it."""
    if getattr(config, "is_decoder", False) or getattr(config, "is_encoder_decoder", False):
        return False
    return type(config) in MODEL_FOR_MASKED_LM_MAPPING and type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING


def encoder_trunk(model: Any) -> Any:
    """The part of a classifier that makes its hidden states."""
    return model.base_model


def head_parts(model: Any) -> dict[str, nn.Module]:
    """The parts of an encoder that make its score of its hidden states, by their names: pooler, dense layer, output.

    Empty for any other model. ``model`` may be on PyTorch's meta device.
    """
    if not is_encoder(model.config) or model.base_model is model:
        return {}
    prefix, trunk = model.base_model_prefix, model.base_model
    parts = {name: child for name, child in model.named_children() if child is not trunk and _has_weights(child)}
    pooler = getattr(trunk, POOLER, None)
    return {f"{prefix}.{POOLER}": pooler, **parts} if pooler is not None else parts


def head_weights(model: Any) -> Iterator[tuple[str, nn.Parameter]]:
    """The weights of :func:`head_parts`, by their names in the model."""
    for name, part in head_parts(model).items():
        yield from ((f"{name}.{own}", weight) for own, weight in part.named_parameters())


def output_layer(model: Any) -> nn.Linear:
    """The linear layer whose one output is the score."""
    layers = [module for part in head_parts(model).values() for module in part.modules()]
    return next(layer for layer in reversed(layers) if isinstance(layer, nn.Linear) and layer.out_features == 1)


def longest_text(model: Any) -> int | None:
    """Tokens that an encoder reads at most; None where its positions have no end."""
    table = getattr(getattr(encoder_trunk(model), "embeddings", None), "position_embeddings", None)
    if isinstance(table, nn.Embedding):  # RoBERTa's positions begin behind the pad token's number
        return table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
    longest: int | None = getattr(model.config, "max_position_embeddings", None)
    return longest


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None
