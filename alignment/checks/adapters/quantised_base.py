"""What is wrong with a recipe that holds its base in fewer bits below its adapters (``model.quantise``)."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from alignment.checks.adapters.lora import adapter_of
from alignment.errors import Fault
from alignment.recipe.base import BASE, Lora
from alignment.recipe.graph import trains_on_several
from alignment.recipe.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

FIELD = "model.quantise"


def adapters_only_faults(recipe: Recipe) -> Iterator[Fault]:
    """Stages that a base in fewer bits leaves nothing to train, and engines that hold another one. Imports no torch."""
    scheme, resources = recipe.model.quantise, recipe.resources
    if scheme is None:
        return
    for before, (name, stage) in enumerate(recipe.stages.items()):
        if "policy" not in stage.spec.makes or not stage.trains_adapter() or stage.trained_part() is not None:
            continue
        start = stage.inputs()["model"][0]
        if start == BASE or adapter_of(recipe, start, before) is not None:
            problem = f"a quantised base cannot train all weights, and model.quantise is {scheme}"
            yield Fault(problem, "set lora, or model.quantise to null", field=f"stages.{name}.lora")
    for name, stage in recipe.stages.items():
        if scheme == "int8" and isinstance(lora := stage.adapter_trained(), Lora) and lora.dora:
            problem = "bitsandbytes' 8-bit weights cannot be copied, which measuring their rows needs"
            yield Fault(problem, "set it to false, or model.quantise to nf4", field=f"stages.{name}.lora.dora")
    for name, stage in recipe.stages.items():
        if isinstance(lora := stage.adapter_trained(), Lora) and lora.init != "zero":
            problem = f"{lora.init} starts at the weights, of which {scheme} holds rounded ones"
            yield Fault(problem, "set it to zero, or model.quantise to null", field=f"stages.{name}.lora.init")
    if resources.vllm is not None:
        problem = (
            f"{scheme}, and the vLLM server holds the base in its own numbers: its answers would be another model's"
        )
        yield Fault(problem, "set it to null, or remove resources.vllm", field=FIELD)
    if resources.sharding != "none" and any(trains_on_several(resources, stage) for stage in recipe.stages.values()):
        problem = f"{scheme}, and {resources.sharding} shards plain numbers alone"
        yield Fault(problem, "set it to null, or resources.sharding to none", field=FIELD)


def held_base_faults(recipe: Recipe, config: "PreTrainedConfig") -> Iterator[Fault]:
    """A base that cannot be held in fewer bits here: by its files, its shape, or for want of the library."""
    scheme = recipe.model.quantise
    if scheme is None:
        return
    from alignment.compression.schemes import width_problem
    from alignment.models.families.lora_targets import lora_targets, without_weights
    from alignment.models.quantised import EXTRA, missing_library, quantisation

    if missing_library("bitsandbytes") is not None:
        yield Fault(f"{scheme} is bitsandbytes', which is not installed", f"run {EXTRA}", field=FIELD)
    folder = Path(recipe.model.base)
    if folder.is_dir() and (method := quantisation(folder)) is not None:
        yield Fault(f"{scheme}, and the base is quantised already ({method})", "leave it out", field=FIELD)
        return
    try:
        targets = lora_targets(without_weights(config))
    except ValueError:
        return  # no causal language model, which is said already
    if any(target.is_parameter for target in targets):
        problem = f"{scheme}, and bitsandbytes leaves the experts of {config.model_type} in plain numbers"
        yield Fault(problem, "set it to null", field=FIELD)
    elif (found := width_problem(scheme, _device(recipe), config)) is not None:
        yield Fault(found[0], "take int8, or null", field=FIELD)


def _device(recipe: Recipe) -> str:
    import torch

    return "cuda" if recipe.resources.device != "cpu" and torch.cuda.is_available() else "cpu"
