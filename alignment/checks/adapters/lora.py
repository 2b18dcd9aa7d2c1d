"""Which adapter a policy is, and settings of a later stage that it would not heed."""

from collections.abc import Iterator
from typing import Any

from alignment.errors import Fault
from alignment.recipe.base import AdapterSettings, Lora
from alignment.recipe.recipe import Recipe
from alignment.recipe.stages.spec import StageSettings


def stacking_faults(recipe: Recipe) -> Iterator[Fault]:
    """Settings of an adapter that a stage would not make: the policy that it trains is an adapter already.

    A setting at its default is no wish: a resolved recipe, which repeats a run, writes them all. Imports no torch.
    """
    for before, (name, stage) in enumerate(recipe.stages.items()):
        if "policy" not in stage.spec.makes or not stage.trains_adapter() or stage.removes_layers() is not None:
            continue
        found = adapter_of(recipe, stage.inputs()["model"][0], before)
        if found is not None:
            yield from _stacked(name, stage, *found)


def _stacked(name: str, stage: StageSettings, source: str, there: AdapterSettings) -> Iterator[Fault]:
    asked, usual = stage.trained_part(), type(stage).model_fields["lora"].get_default(call_default_factory=True)
    field = f"stages.{name}.{_setting(stage)}"
    if asked is None:
        if "lora" in stage.model_fields_set and usual is not None:
            problem = f"{source} makes an adapter, which {name} trains on: all weights would not be trained"
            remedy = f"leave it out, or set stages.{source}.{_setting_of(there)} to null"
            yield Fault(problem, remedy, field=field)
        return
    if not asked.keeps_base():
        problem = f"{source} makes an adapter, which {name} trains on: weights of the base would not be trained"
        yield Fault(problem, f"leave it out, or take {source}'s adapter away", field=field)
        return
    defaults = usual or Lora()
    if asked.label() != there.label():
        if asked != defaults:
            problem = f"{asked.label()}, and {name} trains on {source}'s adapter, which is {there.label()}"
            yield Fault(problem, f"leave it out, or set it in stages.{source}", field=field)
        return
    for setting in sorted(asked.model_fields_set):
        wanted, has = getattr(asked, setting), getattr(there, setting)
        usually = getattr(defaults, setting) if asked.label() == "lora" else type(asked).model_fields[setting].default
        if wanted in (has, usually):
            continue
        problem = f"{_shown(wanted)}, and {name} trains on {source}'s adapter, where it is {_shown(has)}"
        yield Fault(problem, f"leave it out, or set it in stages.{source}", field=f"{field}.{setting}")


def _setting(stage: StageSettings) -> str:
    part = stage.trained_part()
    return "lora" if part is None else _setting_of(part)


def _setting_of(part: AdapterSettings) -> str:
    return "lora" if part.label() == "lora" else "adapter"


def adapter_of(recipe: Recipe, name: str, before: int) -> tuple[str, AdapterSettings] | None:
    """The stage that made the adapter which the policy ``name`` is, and its settings; None where it is whole weights.

    Only the first ``before`` stages count: an input that comes later is another fault.
    """
    names = list(recipe.stages)[:before]
    stage = recipe.stages[name] if name in names else None
    if stage is None or "policy" not in stage.spec.makes:
        return None
    if stage.quantises() is not None or stage.removes_layers() is not None or stage.makes_base() or stage.is_outside():
        return None  # its weights are its own
    part, start = stage.adapter_trained(), stage.inputs()["policies" if stage.evaluates() else "model"][0]
    return adapter_of(recipe, start, names.index(name)) or (None if part is None else (name, part))


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(value)
    if isinstance(value, bool) or value is None:
        return str(value).lower().replace("none", "every layer")
    return f"{value:g}"
