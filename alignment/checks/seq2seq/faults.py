"""Everything that stands against a recipe whose model is an encoder-decoder: its stages, its settings, the model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alignment.checks.causality import OTHER_HEADS, missing_weights
from alignment.checks.seq2seq.architecture import family_problem
from alignment.data.columns import listed
from alignment.errors import Fault
from alignment.recipe.base import Lora
from alignment.recipe.error_messages import STAGE_KINDS
from alignment.recipe.graph import stage_inputs, trains_on_several
from alignment.recipe.recipe import Recipe
from alignment.recipe.stages.spec import StageSettings


def encoder_decoder_faults(recipe: Recipe, config: Any) -> list[Fault]:
    """The faults of a recipe on a base of this configuration, which is an encoder-decoder's."""
    folder = Path(recipe.model.base)
    faults = [*_stage_faults(recipe, config), *_setting_faults(recipe, config)]
    if foreign := [name for name in config.architectures or () if name.endswith(OTHER_HEADS)]:
        problem = f"the folder holds a {foreign[0]}, whose weights have no language-model head: it would be random"
        return [*faults, Fault(problem, "give a model that AutoModelForSeq2SeqLM loads", recipe.model.base)]
    if (trouble := family_problem(config)) is not None:
        return [*faults, Fault(trouble, "give a T5 or a BART", recipe.model.base)]
    return faults + (missing_weights(str(folder)) if folder.is_dir() else [])


def _stage_faults(recipe: Recipe, config: Any) -> Iterator[Fault]:
    """Stages that would be given it as a policy, or as a judge, and take a decoder alone."""
    kinds = sorted(kind for kind, settings in STAGE_KINDS.items() if settings.spec.encoder_decoder_roles)
    remedy = f"take a decoder alone, such as a Llama or a Qwen: encoder-decoders are for {listed(kinds)}"
    for name, stage in recipe.stages.items():
        if stage.encoder_used() is not None:
            continue  # it starts from a model of its own
        roles = [role for role in stage_inputs(stage) if stage.spec.reads.get(role) == "policy"]
        refused = [_part(stage, role) for role in roles if role not in stage.spec.encoder_decoder_roles]
        for part in dict.fromkeys(refused):
            problem = f"{config.model_type} is an encoder with a decoder, which no {part} can be"
            yield Fault(problem, remedy, field=f"stages.{name}")


def _part(stage: StageSettings, role: str) -> str:
    return "judge of a recipe" if role == "judge" else f"policy of a stage of kind {stage.kind}"


def _setting_faults(recipe: Recipe, config: Any) -> Iterator[Fault]:
    kind, resources = config.model_type, recipe.resources
    if recipe.model.quantise is not None or getattr(config, "quantization_config", None) is not None:
        problem = f"{kind} is an encoder with a decoder, which is trained and asked in plain numbers alone"
        field = "model.base" if recipe.model.quantise is None else "model.quantise"
        yield Fault(problem, "take whole weights, and leave model.quantise out", field=field)
    if resources.vllm is not None:
        problem = f"{kind} is an encoder with a decoder, which no vLLM server samples from here"
        yield Fault(problem, "leave it out", field="resources.vllm")
    for name, stage in recipe.stages.items():
        at = f"stages.{name}"
        if not stage.spec.encoder_decoder_roles:
            continue
        if stage.router_loss_used():
            yield Fault(f"{kind} computes no loss of routers", "leave router_loss out", field=f"{at}.router_loss")
        if stage.packs_rows():
            problem = f"{kind} is an encoder with a decoder, whose rows hold one conversation each"
            yield Fault(problem, "set it to false", field=f"{at}.packing")
        if stage.environment_used() is not None:
            problem = f"{kind} is an encoder with a decoder, which answers once and is told nothing in between"
            yield Fault(problem, "leave it out", field=f"{at}.environment")
        part = stage.trained_part()
        if part is not None and not isinstance(part, Lora):
            problem = f"{part.label()}, and an encoder with a decoder is trained whole or by low-rank adapters"
            yield Fault(problem, "set lora in its place, or null", field=f"{at}.adapter")
        if resources.sharding != "none" and trains_on_several(resources, stage):
            problem = f"{kind} is an encoder with a decoder, which is not sharded"
            yield Fault(problem, "set it to none", field="resources.sharding")
