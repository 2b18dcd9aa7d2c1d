"""A recipe's plan: each stage's work on each machine, whether it fits there, and what to change where it does not."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from alignment.plan.hardware import GIB, Machine
from alignment.plan.memory import Memory, peak_memory
from alignment.plan.sizes import ModelSize
from alignment.plan.stages import Planner
from alignment.plan.texts import Texts
from alignment.plan.work import StageWork, flops, seconds
from alignment.recipe.base import Lora
from alignment.recipe.recipe import Recipe
from alignment.recipe.stages.spec import StageSettings

USABLE = 0.9  # of a device's memory: the rest goes to fragments and to what is not counted


@dataclass(frozen=True, slots=True)
class OnMachine:
    """A stage on a machine. ``remedies`` are settings with which it would fit; empty where it does."""

    machine: str
    precision: str
    memory: Memory
    seconds: float
    cost: float  # US dollars
    fits: bool
    remedies: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StagePlan:
    """A stage: its size, its work, and how that goes on each machine. ``at_most``: tokens and operations are bounds."""

    name: str
    kind: str
    parameters: int
    trainable: int
    tokens_trained: int
    tokens_sampled: int
    flops: float
    at_most: bool
    remarks: tuple[str, ...]
    machines: tuple[OnMachine, ...]


def make_plan(
    recipe: Recipe,
    size: ModelSize,
    texts: Texts,
    machines: Sequence[Machine],
    *,
    precision: str = "auto",
    encoders: Mapping[str, tuple[ModelSize, Texts]] = MappingProxyType({}),
) -> list[StagePlan]:
    """The plan of every stage. ``precision`` is the recipe's ``model.dtype``; ``auto``: each machine's own.

    ``encoders`` are those that stages start from, by the stages' names: their sizes, and the texts by their tokenizers.
    """
    planner = Planner(recipe, size, texts, encoders)
    plans = []
    for name in recipe.stages:
        work = planner.work(name)
        plans.append(
            StagePlan(
                name,
                work.kind,
                work.parameters,
                work.trainable,
                round(work.trained),
                round(work.sampled),
                sum(flops(activity, planner.size_of(name), work) for activity in work.activities),
                work.at_most,
                tuple(work.remarks),
                tuple(_on(machine, planner, work, machine.natural if precision == "auto" else precision)
                      for machine in machines),
            )
        )  # fmt: skip
    return plans


def _on(machine: Machine, planner: Planner, work: StageWork, precision: str) -> OnMachine:
    memory = peak_memory(work, planner.size_of(work.name), machine, precision)
    took = sum(seconds(activity, planner.size_of(work.name), work, machine, precision) for activity in work.activities)
    fits = memory.total <= USABLE * machine.memory
    found = () if fits else _remedies(machine, planner, work, precision)
    return OnMachine(machine.name, precision, memory, took, took / 3600 * machine.price, fits, found)


def _remedies(machine: Machine, planner: Planner, work: StageWork, precision: str) -> tuple[str, ...]:
    """Changes of the stage's settings, one after the other as far as is needed, that the arithmetic finds to fit."""
    stage: StageSettings = planner.recipe.stages[work.name]
    said: list[str] = []

    def fits() -> bool:
        changed = planner.work(work.name, stage)
        return peak_memory(changed, planner.size_of(work.name), machine, precision).total <= USABLE * machine.memory

    def change(**values: Any) -> bool:
        nonlocal stage
        stage = stage.model_copy(update=values)
        for key, value in values.items():
            said[:] = [line for line in said if not line.startswith(f"stages.{work.name}.{key}=")]
            said.append(f"stages.{work.name}.{key}={str(value).lower() if isinstance(value, bool) else value}")
        return fits()

    if precision == "float32" and machine.gpu:
        precision = "bfloat16"
        said.append("model.dtype=bfloat16")
        if fits():
            return tuple(said)
    while (changes := stage.lighter()) is not None:
        if change(**changes):
            return tuple(said)
    if work.full and stage.trains_adapter():
        found = change(lora=Lora())
        said[-1] = f"stages.{work.name}.lora={{}}"
        if found:
            return tuple(said)
    needed = peak_memory(planner.work(work.name, stage), planner.size_of(work.name), machine, precision).total / USABLE
    return (
        f"a device with {needed / GIB:.0f} GiB or more, even with {', '.join(said) or 'every setting at its least'}",
    )


def as_json(plan: StagePlan) -> dict[str, Any]:
    """A stage's plan as plain values, bytes and seconds; each machine's memory with its total."""
    value = dataclasses.asdict(plan)
    for machine, on in zip(value["machines"], plan.machines, strict=True):
        machine["memory"]["total"] = on.memory.total
    return value
