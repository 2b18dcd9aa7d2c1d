"""Some of a model's own weights, the others frozen: biases alone, the last layers, parts by their names."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from alignment.data.columns import listed
from alignment.errors import StageError, nearest
from alignment.models.encoders.architecture import head_weights
from alignment.models.families.lora_targets import is_named, text_decoder
from alignment.recipe.base import AdapterSettings
from alignment.recipe.stages.adapters import BitFit, Layers

HEADS = ("score",)  # of models with one score, which are trained with every choice


def freeze(model: Any, settings: AdapterSettings) -> Any:
    """Freezes all weights but those that ``settings`` choose. Raises StageError where the model has none of them."""
    if (found := own_weights_problem(model, settings)) is not None:
        setting, problem, remedy = found
        raise StageError(f"adapter.{setting}: {problem}: {remedy}")
    chosen = {*chosen_weights(model, settings), *(name for name, _weight in head_weights(model))}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen or name.split(".")[0] in HEADS)
    return model


def chosen_weights(model: Any, settings: AdapterSettings) -> list[str]:
    """The names of the weights that are trained; ``model`` may be on PyTorch's meta device."""
    if isinstance(settings, BitFit):
        return [name for name, _weight in _weights(model) if name.rpartition(".")[2] == "bias"]
    if not isinstance(settings, Layers):
        raise StageError(f"{settings.label()} chooses none of a model's own weights")
    parts = last_parts(model, settings.last) if settings.last is not None else []
    ends = settings.modules or ()
    return [
        name
        for name, _weight in _weights(model)
        if any(name.startswith(f"{part}.") for part in parts) or any(is_named(part, ends) for part in _above(name))
    ]


def own_weights_problem(model: Any, settings: AdapterSettings) -> tuple[str, str, str] | None:
    """What stands against it: the setting, the problem and what to do; None where nothing does."""
    kind = type(model).__name__
    if isinstance(settings, BitFit) and not chosen_weights(model, settings):
        return "kind", f"{kind} has no biases", "take ia3, layers or lora"
    if not isinstance(settings, Layers):
        return None
    names = [name for name, _weight in _weights(model)]
    known = sorted({part.rpartition(".")[2] for name in names for part in _above(name)} - {""})
    for index, end in enumerate(settings.modules or ()):
        if not any(is_named(part, (end,)) for name in names for part in _above(name)):
            near = nearest(end, known)
            shown = [name for name in known if not name.isdigit()]
            remedy = (f"did you mean {near}? " if near else "") + f"it has {listed(shown)}"
            return f"modules.{index}", f"{kind} has no part {end} with weights of its own", remedy
    if settings.last is not None:
        count = model.config.get_text_config().num_hidden_layers
        if _layers(model) is None:
            return "last", f"which layers a {kind} is made of is not known", "name modules"
        if settings.last > count:
            return "last", f"{settings.last}, and {kind} has {count} layers", f"set it to {count} or less"
    return None


def last_parts(model: Any, last: int) -> list[str]:
    """The names of the last layers of a model, and of what stands behind them in its decoder, such as a norm."""
    found = _layers(model)
    if found is None:
        raise StageError(f"which layers a {type(model).__name__} is made of is not known: name modules")
    path, layers = found
    parts = [f"{path}.{place}" for place in range(len(layers) - last, len(layers))]
    parent, _dot, own = path.rpartition(".")
    siblings = [name for name, _child in model.get_submodule(parent).named_children()]
    return parts + [f"{parent}.{name}" if parent else name for name in siblings[siblings.index(own) + 1 :]]


def _layers(model: Any) -> tuple[str, nn.ModuleList] | None:
    """The name and the list of a decoder's layers."""
    count = model.config.get_text_config().num_hidden_layers
    inside = {id(part) for part in text_decoder(model).modules()}
    lists = (
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count and id(module) in inside
    )
    return next(lists, None)


def _weights(model: Any) -> Iterator[tuple[str, Any]]:
    inside = {id(weight) for weight in text_decoder(model).parameters()}
    return ((name, weight) for name, weight in model.named_parameters() if id(weight) in inside)


def _above(name: str) -> Iterator[str]:
    """A weight's name, and those of the modules that it is in, from the innermost."""
    yield name
    while "." in name:
        name = name.rpartition(".")[0]
        yield name
