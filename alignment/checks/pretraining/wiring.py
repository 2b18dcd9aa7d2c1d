"""What is wrong between the stages that make a model and the rest of a recipe. Imports no torch."""

from collections.abc import Iterator

from alignment.checks.adapters.lora import adapter_of
from alignment.errors import Fault
from alignment.recipe.base import BASE, MADE_BASE
from alignment.recipe.graph import of_type, stage_inputs, trains_on_several
from alignment.recipe.recipe import Recipe
from alignment.recipe.stages.pretraining.pretrain import PretrainStage


def pretraining_faults(recipe: Recipe) -> Iterator[Fault]:
    """Models that are made and named at once, or neither; adapters that would be trained whole; optimizers and engines
    that do not go with it."""
    stages = dict(of_type(recipe.stages, PretrainStage))
    yield from _beginning_faults(recipe, stages)
    sharded = recipe.resources.sharding
    for name, stage in stages.items():
        at = f"stages.{name}"
        if stage.optimizer == "muon" and sharded != "none" and trains_on_several(recipe.resources, stage):
            problem = f"muon turns whole matrices, and {sharded} leaves each worker a part of them"
            yield Fault(problem, "take adamw, or set resources.sharding to none", field=f"{at}.optimizer")
        if stage.model is None:
            continue
        found = adapter_of(recipe, stage.model, list(recipe.stages).index(name))
        if found is not None:
            problem = f"{found[0]} makes an adapter, and pretraining trains all weights"
            yield Fault(problem, f"set stages.{found[0]}.lora to null", field=f"{at}.model")
        if stage.model == BASE and recipe.model.quantise is not None:
            problem = f"a base in {recipe.model.quantise} cannot train all weights"
            yield Fault(problem, "set model.quantise to null", field=f"{at}.model")
    yield from _foundation_faults(recipe)
    yield from _older_base_faults(recipe)


def _beginning_faults(recipe: Recipe, stages: dict[str, PretrainStage]) -> Iterator[Fault]:
    new = [name for name, stage in stages.items() if stage.model is None]
    model = recipe.model
    if model.base != MADE_BASE:
        for name in new:
            problem = f"{name} makes a model from nothing, and the recipe begins with this one"
            yield Fault(problem, f"leave it out, or set stages.{name}.model to base", field="model.base")
        return
    if not new:
        problem = "no stage of kind pretrain makes a model from nothing"
        yield Fault(problem, "give such a stage a tokenizer and an architecture, or name a model", field="model.base")
    if model.revision is not None:
        problem = "a revision of a hub's model, and the recipe makes its model itself"
        yield Fault(problem, "leave it out", field="model.revision")
    if recipe.resources.vllm is not None:
        problem = "the vLLM server serves a model that there is, and the recipe makes its model itself"
        yield Fault(problem, "remove resources.vllm", field="resources.vllm")


def _older_base_faults(recipe: Recipe) -> Iterator[Fault]:
    """Adapters on what ``base`` was before a stage made another."""
    names, newest = list(recipe.stages), None
    for before, (name, stage) in enumerate(recipe.stages.items()):
        for role, sources in stage_inputs(stage).items():
            read: tuple[str, ...] = sources if newest is not None else ()
            for source in read:
                found = adapter_of(recipe, source, before)
                if newest is not None and found is not None and names.index(found[0]) < names.index(newest):
                    problem = f"{source} is an adapter on what base was before {newest} made another"
                    yield Fault(problem, f"move {newest} before {found[0]}", field=f"stages.{name}.{role}")
        if stage.makes_base():
            newest = name


def _foundation_faults(recipe: Recipe) -> Iterator[Fault]:
    """Adapters on a stage's whole weights: an adapter is kept, and loaded, on what ``base`` is and on nothing else."""
    bases = {BASE}
    for before, (name, stage) in enumerate(recipe.stages.items()):
        if stage.makes_base():
            bases = {BASE, name}
            continue
        if "policy" not in stage.spec.makes or not stage.trains_adapter() or stage.adapter_trained() is None:
            continue
        start = stage.inputs().get("model", (BASE,))[0]
        source = recipe.stages.get(start)
        if start in bases or source is None or start not in list(recipe.stages)[:before]:
            continue
        if "policy" not in source.spec.makes or source.quantises() is not None:
            continue  # which is said already
        if adapter_of(recipe, start, before) is None:
            problem = f"{start} makes whole weights, and {name} would train an adapter, which is kept on base alone"
            remedy = f"set it to null, or train an adapter in stages.{start}"
            yield Fault(problem, remedy, field=f"stages.{name}.lora")
