"""``rlhf plan``: what a recipe will take, before anything runs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from alignment.errors import Fault, InputError
from alignment.plan.hardware import GIB, GPUS, Machine, this_processor
from alignment.precision import natural_precision
from flows.console import PlainConsole
from flows.failures import open_workspace
from flows.recipe_source import prepare
from flows.services import servers

if TYPE_CHECKING:
    from alignment.plan.kinds.pretraining import ComputeOptimal
    from alignment.plan.plan import StagePlan
    from alignment.plan.power import GatePlan
    from flows.pipeline.cached_stages import CacheState


def plan_command(
    given: str,
    workspace: Path,
    overrides: list[str],
    on: Sequence[str],
    *,
    measure: bool,
    hours: float | None = None,
    as_json: bool,
) -> None:
    """Prints the plan of a recipe, or raises InputError with every fault that ``rlhf check`` finds."""
    machines = _machines(on, measure)
    space = open_workspace(workspace)
    servers.quiet_environment(space)
    from alignment.checks.data import read_data
    from alignment.checks.pretraining.made_model import inspect_recipe, recipe_config
    from alignment.checks.recipe import check_recipe
    from alignment.plan import plan
    from alignment.plan.encoders import measure_encoders
    from alignment.plan.power import plan_gate
    from alignment.plan.sizes import model_size
    from alignment.plan.texts import measure_texts
    from alignment.registry.looks import next_number
    from flows.pipeline.cached_stages import cached_stages

    resolved = prepare(given, overrides)
    recipe = resolved.recipe
    faults = check_recipe(resolved, space)
    # The GPU that a plan is for need not be in this machine.
    if faults := [fault for fault in faults if fault.field != "resources.device"]:
        raise InputError(faults)
    data, _faults = read_data(recipe, resolved.data)
    model = inspect_recipe(resolved, space)
    assert model is not None  # the check has found it
    texts = measure_texts(data, recipe.data.held_out, model.tokenizer)
    size = model_size(recipe_config(resolved, space))
    encoders = measure_encoders(resolved, data)
    plans = plan.make_plan(recipe, size, texts, machines, precision=resolved.precision, encoders=encoders)
    gate = plan_gate(recipe, data, partial(next_number, space))
    cache = cached_stages(resolved, space)
    budget = _budget(machines, resolved.precision, hours)
    if as_json:
        value = {
            "recipe": recipe.name,
            "digest": resolved.digest,
            "machines": [asdict(machine) for machine in machines],
            "stages": [plan.as_json(one) | _cache_json(cache[one.name]) for one in plans],
            "gate": [asdict(one) for one in gate],
            "compute_optimal": [asdict(one) for one in budget],
        }
        print(json.dumps(value, indent=2))
    else:
        _show(PlainConsole(), plans, machines, cache)
        _show_gate(PlainConsole(), gate)
        _show_budget(PlainConsole(), budget)


def _show_gate(console: PlainConsole, gate: "Sequence[GatePlan]") -> None:
    """What the gate's held-out prompts show of a true win rate, and how many it takes."""
    if not gate:
        return
    held = " and ".join(f"{100 * one.level:.2g} % {one.by}" for one in gate)
    console.print(
        f"\nthe gate asks {gate[0].prompts:,} held-out prompts; look {gate[0].look} at them is held to {held}"
    )
    heads = [head for one in gate for head in (f"{one.by}: shows", "needs")]
    table = Table("true win rate", *heads, box=None)
    for sights in zip(*(one.sights for one in gate), strict=True):
        cells = [cell for sight in sights for cell in (f"{sight.power:.0%}", f"{sight.prompts_needed:,}")]
        table.add_row(f"{sights[0].rate:.0%}", *cells)
    console.print(table)
    console.print(
        "shows: the chance that such a version is promoted; needs: the prompts with which it is 80 %. No ties"
    )


def _budget(machines: Sequence[Machine], precision: str, hours: float | None) -> "list[ComputeOptimal]":
    """The compute-optimal model on each machine; nothing where no hours are given."""
    from alignment.plan.kinds.pretraining import compute_optimal

    if hours is None:
        return []
    return [
        compute_optimal(machine, machine.natural if precision == "auto" else precision, hours) for machine in machines
    ]


def _show_budget(console: PlainConsole, budget: "Sequence[ComputeOptimal]") -> None:
    """What the hours are best spent on."""
    if not budget:
        return
    table = Table("machine", "operations", "parameters", "tokens", box=None)
    for one in budget:
        table.add_row(one.machine, f"{one.flops:.2g}", f"{one.parameters:,}", f"{one.tokens:,}")
    console.print(
        f"\n{budget[0].hours:g} hours of pretraining: C = 6 N D operations are best spent on N = √(C / 120) parameters "
        "and D = 20 N tokens (Hoffmann et al. 2022)"
    )
    console.print(table)


def _cache_json(state: "CacheState") -> dict[str, str | None]:
    return {"cache": state.state, "artifact": str(state.artifact.ref()) if state.artifact else None}


def _machines(on: Sequence[str], measure: bool) -> list[Machine]:
    processor = this_processor(natural_precision("cpu"), measured=measure)
    known = {machine.name.lower(): machine for machine in (processor, *GPUS)}
    unknown = [name for name in on if name.lower() not in known]
    if unknown:
        names = ", ".join(machine.name for machine in (processor, *GPUS))
        raise InputError(
            [Fault(f"no machine {name!r}", f"the machines are: {names}", field="--on") for name in unknown]
        )
    return [known[name.lower()] for name in dict.fromkeys(on)] if on else list(known.values())


def _show(
    console: PlainConsole,
    plans: "Sequence[StagePlan]",
    machines: Sequence[Machine],
    cache: "Mapping[str, CacheState]",
) -> None:
    bound = any(one.at_most for one in plans)
    table = Table("stage", "kind", "parameters", "trainable", "tokens trained", "sampled", "TFLOPs", box=None)
    for one in plans:
        mark = "≤ " if one.at_most else ""
        table.add_row(
            one.name, one.kind, _millions(one.parameters), _millions(one.trainable), f"{mark}{one.tokens_trained:,}",
            f"{mark}{one.tokens_sampled:,}", f"{mark}{one.flops / 1e12:,.1f}",
        )  # fmt: skip
    console.print(table)
    if bound:
        console.print("≤: answers at their longest, and as many pairs as the raters can make")
    _show_first(console, plans, machines[0])
    _show_cache(console, plans, cache)
    _show_machines(console, plans, machines)
    for one in plans:
        for remark in one.remarks:
            console.print(f"{one.name}: {remark}")


def _show_first(console: PlainConsole, plans: "Sequence[StagePlan]", machine: Machine) -> None:
    """Each stage's memory, part by part, and time on one machine."""
    parts = ("program", "weights", "gradients", "optimizer", "activations", "logits", "kv_cache", "total")
    short = {"gradients": "grads", "optimizer": "AdamW", "kv_cache": "KV"}
    table = Table(
        f"GiB, {machine.name}", *(short.get(part, part) for part in parts), "time", box=None, padding=(0, 1, 0, 0)
    )
    for one in plans:
        here = one.machines[0]
        cells = [f"{getattr(here.memory, part) / GIB:.2f}" for part in parts]
        table.add_row(one.name, *cells, _time(here.seconds))
    console.print()
    console.print(table)


def _show_cache(console: PlainConsole, plans: "Sequence[StagePlan]", cache: "Mapping[str, CacheState]") -> None:
    """What a run would take from the cache, and what is left to do on the first machine."""
    words = {
        "cached": "from the cache", "unfinished": "goes on from a checkpoint", "new": "made now",
        "unknown": "made now, or found when the run comes to it",
    }  # fmt: skip
    console.print()
    for state, what in words.items():
        names = [f"{name} v{one.artifact.version}" if one.artifact else name
                 for name, one in cache.items() if one.state == state]  # fmt: skip
        if names:
            console.print(f"{what}: {', '.join(names)}")
    if any(one.state == "cached" for one in cache.values()):
        left = sum(one.machines[0].seconds for one in plans if cache[one.name].state != "cached")
        whole = sum(one.machines[0].seconds for one in plans)
        console.print(f"left to do on {plans[0].machines[0].machine}: {_time(left)} of {_time(whole)}")


def _show_machines(console: PlainConsole, plans: "Sequence[StagePlan]", machines: Sequence[Machine]) -> None:
    """The whole run on each machine, and what to change where a stage does not fit."""
    table = Table("machine", "memory", "peak", "fits", "time", "$ an hour", "cost", box=None)
    advice = []
    for index, machine in enumerate(machines):
        stages = [one.machines[index] for one in plans]
        peak, took = max(here.memory.total for here in stages), sum(here.seconds for here in stages)
        fits = all(here.fits for here in stages)
        table.add_row(
            machine.name, f"{machine.memory / GIB:.0f} GiB", f"{peak / GIB:.1f} GiB", "yes" if fits else "no",
            _time(took), f"{machine.price:.2f}", f"{sum(here.cost for here in stages):.2f}",
        )  # fmt: skip
        advice += [
            f"{machine.name}: {one.name} needs {here.memory.total / GIB:.1f} GiB; {_advice(here.remedies)}"
            for one, here in zip(plans, stages, strict=True)
            if not here.fits
        ]
    console.print()
    console.print(table)
    console.print("prices are assumptions; times are estimates, without loading models")
    for line in advice:
        console.print(line)


def _advice(remedies: Sequence[str]) -> str:
    settings = all("=" in remedy.split(" ")[0] for remedy in remedies)
    return f"it fits with {' '.join(f'--set {one}' for one in remedies)}" if settings else f"take {remedies[0]}"


def _millions(parameters: int) -> str:
    return f"{parameters / 1e6:,.1f} M"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
