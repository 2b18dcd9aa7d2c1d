"""A student that is its teacher without some of its layers."""

import dataclasses
from typing import Any

import torch

from alignment.digests import digest_of
from alignment.errors import StageError
from alignment.models.adapters import merged
from alignment.models.load import load_policy
from alignment.recipe.base import BASE
from alignment.records import Artifact
from alignment.stage import StageContext


def kept_layers(count: int, share: float) -> list[int]:
    """The places of ``share`` of ``count`` layers, evenly spaced, the first and the last among them.

    Raises ValueError where fewer than two layers, or all of them, would stay.
    """
    kept = round(count * share)
    if not 2 <= kept < count:
        raise ValueError(f"{share:g} of {count} layers are {kept}: a student keeps at least two, and not all")
    return [round(place * (count - 1) / (kept - 1)) for place in range(kept)]


def remove_layers(model: Any, share: float) -> list[int]:
    """Leaves a model ``share`` of its layers; returns which of them stay.

    Raises StageError where the model's layers are not to be found, or too few would stay.
    """
    trunk = model.base_model
    layers = getattr(trunk, "layers", None)
    config = model.config
    if not isinstance(layers, torch.nn.ModuleList) or len(layers) != getattr(config, "num_hidden_layers", None):
        raise StageError(f"which layers a {config.model_type} model is made of is not known; leave layers out")
    try:
        kept = kept_layers(len(layers), share)
    except ValueError as error:
        raise StageError(f"layers: {error}") from None
    trunk.layers = torch.nn.ModuleList(layers[place] for place in kept)
    config.num_hidden_layers = len(kept)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[place] for place in kept]
    for place, layer in enumerate(trunk.layers):  # by it a layer finds its keys and values in the cache
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = place
    return kept


def with_student(name: str, layers: float | None, context: StageContext) -> StageContext:
    """The context in which the policy ``name`` has the share ``layers`` of its layers; the same where that is None.

    The student is written once beside the stage's checkpoints. Raises StageError as :func:`remove_layers`.
    """
    if layers is None:
        return context
    start, base = context.inputs[name], context.inputs[BASE]
    folder = context.checkpoints / "student"
    if not (folder / "tokenizer_config.json").exists():  # written last
        model, tokenizer = load_policy(start, base, context.run)
        whole = merged(model, str(start.ref()))
        remove_layers(whole, layers)
        whole.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    digest = digest_of([start.digest, layers])
    student = Artifact(name=name, kind="model", version=1, digest=digest, path=str(folder), key=digest)
    return dataclasses.replace(
        context, inputs={**context.inputs, BASE: base, name: student}
    )  # it may be the base itself
