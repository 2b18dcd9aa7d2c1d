"""What is wrong with a recipe's other adapters (``adapter``): what cannot merge, serve, shard or attach them."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from alignment.checks.adapters.lora import adapter_of
from alignment.errors import Fault
from alignment.recipe.base import AdapterSettings, Lora
from alignment.recipe.graph import trains_on_several
from alignment.recipe.recipe import Recipe
from alignment.recipe.stages.adapters import Ia3, PrefixTuning, SoftPrompt
from alignment.recipe.stages.spec import StageSettings

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def kind_faults(recipe: Recipe) -> Iterator[Fault]:
    """Adapters that the rest of the recipe cannot work with. Imports no torch."""
    resources = recipe.resources
    for before, (name, stage) in enumerate(recipe.stages.items()):
        yield from _merged_faults(recipe, name, stage, before)
        part = stage.trained_part()
        if isinstance(part, Lora) and part.init != "zero" and _is_sharded(recipe, stage):
            problem = f"{part.init} freezes half of each factor, and {resources.sharding} leaves workers parts of them"
            yield Fault(problem, "set it to zero, or resources.sharding to none", field=f"stages.{name}.lora.init")
        if part is None or part.label() == "lora":
            continue
        field = f"stages.{name}.adapter"
        if resources.vllm is not None and part.keeps_base() and "policy" in stage.spec.makes:
            problem = f"{part.label()}, and the vLLM server takes low-rank adapters alone"
            yield Fault(problem, "set lora in its place, or remove resources.vllm", field=field)
        if _is_sharded(recipe, stage):
            problem = f"{part.label()}, and {resources.sharding} shards low-rank adapters and all weights alone"
            yield Fault(problem, "set lora in its place, or resources.sharding to none", field=field)
        if recipe.model.quantise is not None and not part.keeps_base():
            problem = f"a quantised base cannot train its own weights, and model.quantise is {recipe.model.quantise}"
            yield Fault(problem, "set lora in its place, or model.quantise to null", field=field)
    yield from _gate_faults(recipe)


def _is_sharded(recipe: Recipe, stage: StageSettings) -> bool:
    return recipe.resources.sharding != "none" and trains_on_several(recipe.resources, stage)


def _merged_faults(recipe: Recipe, name: str, stage: StageSettings, before: int) -> Iterator[Fault]:
    """Stages that want whole weights of a policy with virtual tokens."""
    scores = not stage.spec.makes or "policy" not in stage.spec.makes
    wants = (scores and stage.trains_adapter()) or stage.quantises() is not None or stage.removes_layers() is not None
    for source in stage.inputs().get("model", ()) if wants else ():
        found = adapter_of(recipe, source, before)
        if found is not None and found[1].virtual_tokens():
            problem = f"{found[0]} trains virtual tokens ({found[1].label()}), which cannot be merged into weights"
            yield Fault(problem, "name base, or a policy of another adapter", field=f"stages.{name}.model")


def _gate_faults(recipe: Recipe) -> Iterator[Fault]:
    if recipe.gate is None or not recipe.gate.merge:
        return
    stage = recipe.stages.get(recipe.gate.evaluation)
    if stage is None:
        return
    for source in stage.inputs().get("model", ()):
        found = adapter_of(recipe, source, len(recipe.stages))
        if found is not None and found[1].virtual_tokens():
            problem = f"{found[0]} trains virtual tokens ({found[1].label()}), which cannot be merged into weights"
            yield Fault(problem, "set it to false", field="gate.merge")


def attachment_faults(recipe: Recipe, config: "PreTrainedConfig") -> Iterator[Fault]:
    """Adapters that the recipe's model has no place for: layers that it has not, what its experts cannot have."""
    asked = {
        name: part
        for name, stage in recipe.stages.items()
        if (part := stage.trained_part()) is not None and _depends_on_model(part) and stage.encoder_used() is None
    }
    if not asked:
        return
    from alignment.models.families.lora_targets import without_weights

    try:
        model = without_weights(config)
    except ValueError:
        return  # no causal language model, which is said already
    for name, part in asked.items():
        if (found := part_problem(model, part)) is not None:
            setting, problem, remedy = found
            yield Fault(problem, remedy, field=f"stages.{name}.{setting}")


def _depends_on_model(part: AdapterSettings) -> bool:
    """Whether a model may have no place for it. LoRA as it usually is goes on every linear layer that there is."""
    return not isinstance(part, Lora) or bool(part.targets or part.dora or part.dropout or part.init != "zero")


def part_problem(model: Any, part: AdapterSettings) -> tuple[str, str, str] | None:
    """What stands against training ``part`` of a model: the setting within its stage, the problem and what to do."""
    from alignment.models.adapter_kinds.ia3 import ia3_problem
    from alignment.models.adapter_kinds.own_weights import own_weights_problem
    from alignment.models.adapter_kinds.soft_prompt import family_problem
    from alignment.models.families.lora_targets import adapter_problem

    if isinstance(part, Lora):
        found = adapter_problem(model, part)
        return None if found is None else (f"lora.{found.setting}", found.problem, found.remedy)
    if isinstance(part, SoftPrompt):
        refused = family_problem(model, prefix=isinstance(part, PrefixTuning))
        return None if refused is None else ("adapter.kind", *refused)
    known = ia3_problem(model, part) if isinstance(part, Ia3) else own_weights_problem(model, part)
    if known is None:
        return None
    setting, problem, remedy = known
    return f"adapter.{setting}", problem, remedy


def virtual_tokens_of(recipe: Recipe, name: str) -> int:
    """The most tokens that stand in front of a text in a stage: of the policy that it trains, or of those it asks."""
    names, stage = list(recipe.stages), recipe.stages[name]
    policies = [one for read in stage.inputs().values() for one in read]
    parts = [found[1] for one in policies if (found := adapter_of(recipe, one, names.index(name))) is not None]
    own = stage.trained_part()
    return max((part.virtual_tokens() for part in (*parts, *([] if own is None else [own]))), default=0)
