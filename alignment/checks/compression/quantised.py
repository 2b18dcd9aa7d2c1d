"""What is wrong with stages that quantise, and with those that would train quantised weights."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment.errors import Fault
from alignment.recipe.base import BASE
from alignment.recipe.graph import of_type, trains_on_several
from alignment.recipe.recipe import Recipe
from alignment.recipe.stages.compression.quantise import GGUF, QuantiseStage
from alignment.recipe.stages.spec import StageSettings

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


def quantised_policy_faults(recipe: Recipe) -> Iterator[Fault]:
    """Stages that would train, or quantise again, what a stage of the recipe has quantised. Imports no torch."""
    for name, stage in recipe.stages.items():
        for source in _start(stage):
            read = recipe.stages.get(source)
            if read is None or (scheme := read.quantises()) is None:
                continue
            made_of = read.inputs()["model"][0]
            field = f"stages.{name}.model"
            if stage.trains_adapter():
                problem = f"{source} is quantised ({scheme}), and no stage trains on quantised weights of another stage"
                yield Fault(problem, f"train {made_of}, and quantise what comes of it", field=field)
            elif stage.quantises() is not None:
                yield Fault(f"{source} is quantised already ({scheme})", f"name {made_of}", field=field)


def quantised_base_faults(recipe: Recipe) -> Iterator[Fault]:
    """Stages that would train all weights of a quantised base model, or quantise it again."""
    from alignment.models.quantised import EXTRA, missing_library, quantisation

    folder = Path(recipe.model.base)
    method = quantisation(folder) if folder.is_dir() else None
    if method is None:
        return
    if (library := missing_library(method)) is not None:
        problem = f"the model is quantised by {library}, which is not installed"
        yield Fault(problem, f"run {EXTRA}", field="model.base")
    for name, stage in recipe.stages.items():
        if BASE not in _start(stage):
            continue
        if stage.trains_adapter() and stage.adapter_trained() is None:
            problem = f"the base model is quantised ({method}), and integers cannot be trained"
            yield Fault(problem, "set lora, or give the model in plain numbers", field=f"stages.{name}.lora")
        elif stage.quantises() is not None:
            problem = f"the base model is quantised already ({method})"
            yield Fault(problem, "give the model in plain numbers", field=f"stages.{name}.model")


def export_faults(recipe: Recipe, config: "PreTrainedConfig", tokenizer: "PreTrainedTokenizerBase") -> Iterator[Fault]:
    """Schemes whose library, kernels or file format cannot take the recipe's model here."""
    for name, stage in of_type(recipe.stages, QuantiseStage):
        for problem, remedy in _export_problems(stage, recipe, config, tokenizer):
            yield Fault(problem, remedy, field=f"stages.{name}.scheme")


def _export_problems(stage: QuantiseStage, recipe: Recipe, config: Any, tokenizer: Any) -> Iterator[tuple[str, str]]:
    from alignment.compression.gguf_export import architecture_problem
    from alignment.compression.gguf_vocabulary import splitting
    from alignment.compression.schemes import missing, width_problem

    if recipe.resources.address in (None, "local"):  # what a cluster's machines have is not known here
        device = _device(recipe)
        found = missing(stage.scheme, device, recipe.model.dtype) or width_problem(stage.scheme, device, config)
        if found is not None:
            yield found
    if stage.scheme not in GGUF:
        return
    if (problem := architecture_problem(config)) is not None:
        yield problem, "take int8, int8_dynamic, nf4 or bnb_int8"
    elif splitting(tokenizer) is None:
        problem = "llama.cpp has no name for how this tokenizer cuts texts, so its GGUF file would read others"
        yield problem, "take int8, int8_dynamic, nf4 or bnb_int8"


def rounding_faults(recipe: Recipe, config: "PreTrainedConfig") -> Iterator[Fault]:
    """Quantisation-aware training whose library, or whose layers' rows, are not there, or that several shard."""
    from alignment.compression.schemes import widths_of
    from alignment.models.fake_quantised import group_of
    from alignment.models.quantised import EXTRA, missing_library

    for name, stage in recipe.stages.items():
        if (scheme := stage.rounds_weights()) is None:
            continue
        field = f"stages.{name}.qat"
        if missing_library("torchao") is not None:
            yield Fault(f"{scheme} is rounded by torchao, which is not installed", f"run {EXTRA}", field=field)
        widths = sorted(set(widths_of(config)))
        if scheme != "int8" and group_of(scheme, widths) is None:
            problem = f"{scheme} rounds groups of 32 weights or more, and layers here have rows of {widths}"
            yield Fault(problem, "take int8", field=field)
        if recipe.resources.sharding != "none" and trains_on_several(recipe.resources, stage):
            problem = f"{scheme} rounds whole rows, and {recipe.resources.sharding} leaves each worker a part of them"
            yield Fault(problem, "set workers: 1 for this stage, or resources.sharding: none", field=field)


def _device(recipe: Recipe) -> str:
    import torch

    return "cuda" if recipe.resources.device != "cpu" and torch.cuda.is_available() else "cpu"


def _start(stage: StageSettings) -> tuple[str, ...]:
    """The policies that a stage starts from, where it trains or quantises one."""
    return stage.inputs().get("model", ()) if stage.trains_adapter() or stage.quantises() is not None else ()
