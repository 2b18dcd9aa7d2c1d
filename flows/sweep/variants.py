"""The variants of a sweep, checked: every fault of every one of them before anything runs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from alignment.checks.recipe import check_recipe, placed
from alignment.errors import Fault, InputError, raise_faults, suggestion
from alignment.recipe.graph import of_type
from alignment.recipe.recipe import Recipe
from alignment.recipe.resolved import ResolvedRecipe
from alignment.recipe.stages.evaluate import EvaluateStage
from alignment.sweeps.grid import OPTION, Axis, Variant, value_text
from alignment.sweeps.objective import ComparedFigure, choose
from alignment.workspace import Workspace
from flows.pipeline.environment import running_faults
from flows.pipeline.recipe_servers import server_faults
from flows.recipe_source import prepare
from flows.sweep.keys import measuring_key, needed_for, planned_jobs, planned_keys, varied_stages


@dataclass(frozen=True, slots=True)
class ResolvedVariant:
    """A variant and the recipe that it makes."""

    variant: Variant
    resolved: ResolvedRecipe

    @property
    def name(self) -> str:
        return self.variant.name


@dataclass(frozen=True, slots=True)
class CheckedSweep:
    """Variants without faults. ``evaluation`` is the stage that compares them by ``objective``; ``needed`` are the
    stages that it stands on, and ``varied`` those among them that are not the same in all variants."""

    variants: tuple[ResolvedVariant, ...]
    evaluation: str
    objective: ComparedFigure
    needed: frozenset[str]
    varied: frozenset[str]

    @property
    def recipe(self) -> Recipe:
        """The first variant's, for what is the same in all of them."""
        return self.variants[0].resolved.recipe

    @property
    def settings(self) -> EvaluateStage:
        """The evaluation's settings, which differ in the candidate at most."""
        return self.settings_of(0)

    def settings_of(self, place: int) -> EvaluateStage:
        """The evaluation's settings in one variant."""
        return dict(of_type(self.variants[place].resolved.recipe.stages, EvaluateStage))[self.evaluation]


def check_sweep(
    given: str,
    axes: Sequence[Axis],
    variants: Sequence[Variant],
    overrides: Sequence[str],
    workspace: Workspace,
    *,
    by: str | None = None,
) -> CheckedSweep:
    """Reads and checks every variant. Raises InputError with all faults, each once."""
    resolved = _resolved(given, variants, overrides)
    recipe, path = resolved[0].resolved.recipe, resolved[0].resolved.path
    try:
        evaluation = evaluation_of(recipe)
    except InputError as error:
        raise InputError(placed(error.faults, path)) from None
    _require_no_faults(resolved, workspace)
    _require_differences(resolved, axes, evaluation, workspace)
    keys = [planned_keys(one.resolved, workspace) for one in resolved]
    varied = varied_stages(keys)
    settings = dict(of_type(recipe.stages, EvaluateStage))[evaluation]
    try:
        objective = choose(evaluation, settings, varied, by)
    except InputError as error:
        raise InputError(placed(error.faults, path)) from None
    needed = {name for one in resolved for name in needed_for(one.resolved.recipe, [evaluation])}
    return CheckedSweep(tuple(resolved), evaluation, objective, frozenset(needed), frozenset(varied & needed))


def evaluation_of(recipe: Recipe) -> str:
    """The evaluation that the gate decides by, else the last one. Raises InputError where there is none."""
    evaluations = dict(of_type(recipe.stages, EvaluateStage))
    if recipe.gate is not None and recipe.gate.evaluation in evaluations:
        return recipe.gate.evaluation
    held_out = [name for name, stage in evaluations.items() if stage.split == "held out"]
    if not held_out:
        problem = "no stage of kind evaluate asks held-out prompts, so that variants could not be compared"
        raise InputError([Fault(problem, "add one", field="stages")])
    return held_out[-1]


def _resolved(given: str, variants: Sequence[Variant], overrides: Sequence[str]) -> list[ResolvedVariant]:
    """Every variant as a recipe; what ``--over`` sets wrong is said of ``--over``."""
    found, faults = list[ResolvedVariant](), list[Fault]()
    for variant in variants:
        try:
            found.append(ResolvedVariant(variant, prepare(given, [*overrides, *variant.overrides])))
        except InputError as error:
            faults += [_of_the_option(fault, variant) for fault in error.faults]
    raise_faults(list(dict.fromkeys(faults)))
    return found


def _of_the_option(fault: Fault, variant: Variant) -> Fault:
    """A fault of an override, told of the option that it came from."""
    at = fault.field or ""
    mine = any(at == key or at.startswith(f"{key}.") or key.startswith(f"{at}.") for key, _value in variant.settings)
    return replace(fault, file=OPTION) if fault.file == "--set" and mine else fault


def _require_differences(
    resolved: Sequence[ResolvedVariant], axes: Sequence[Axis], evaluation: str, workspace: Workspace
) -> None:
    """Raises InputError for a setting that changes nothing, or the comparison itself, and for variants alike."""
    jobs = [planned_jobs(one.resolved, workspace) for one in resolved]
    whole = [one[evaluation].key for one in jobs]
    frames = [measuring_key(one[evaluation]) for one in jobs]
    faults, idle = list[Fault](), set[str]()
    for axis in axes:
        pairs = [
            (left, right)
            for left, right in combinations(range(len(resolved)), 2)
            if _differ_in(resolved[left].variant, resolved[right].variant) == {axis.key}
        ]
        recipes = [(resolved[left].resolved.recipe, resolved[right].resolved.recipe) for left, right in pairs]
        if all(one == other for one, other in recipes):
            continue  # the same values in other words: two variants alike
        if all(whole[left] == whole[right] for left, right in pairs):
            idle.add(axis.key)
            remedy = _nearest_stage(axis.key, resolved[0].resolved.recipe, evaluation)
            faults.append(Fault(f"it changes no stage that {evaluation} stands on", remedy, OPTION, field=axis.key))
        elif any(frames[left] != frames[right] for left, right in pairs):
            problem = f"it changes {evaluation} itself, by which variants are compared"
            faults.append(Fault(problem, "set it for all of them with --set", OPTION, field=axis.key))
    for left, right in combinations(range(len(resolved)), 2):
        between = _differ_in(resolved[left].variant, resolved[right].variant)
        if whole[left] == whole[right] and not between & idle:
            names = f"{resolved[left].name} and {resolved[right].name}"
            faults.append(Fault(f"{names} are the same", "remove one", OPTION, field=min(between)))
    raise_faults(faults)


def _differ_in(left: Variant, right: Variant) -> set[str]:
    mine, theirs = dict(left.settings), dict(right.settings)
    return {key for key in mine if value_text(mine[key]) != value_text(theirs[key])}


def _nearest_stage(key: str, recipe: Recipe, evaluation: str) -> str:
    needed = [name for name in recipe.stages if name in needed_for(recipe, [evaluation])]
    parts = key.split(".")
    if parts[0] == "stages" and len(parts) > 1 and parts[1] not in needed:
        return suggestion(parts[1], needed)
    return f"name a setting that does, of {', '.join(needed)}"


def _require_no_faults(resolved: Sequence[ResolvedVariant], workspace: Workspace) -> None:
    """Raises InputError with what ``rlhf check`` finds in any variant; what only some have names the first of them."""
    tables = [
        [
            *check_recipe(one.resolved, workspace),
            *placed(running_faults(one.resolved.recipe), one.resolved.path),
            *server_faults(one.resolved, workspace),
        ]
        for one in resolved
    ]  # fmt: skip
    faults = list[Fault]()
    for fault in dict.fromkeys(fault for table in tables for fault in table):
        having = [one for one, table in zip(resolved, tables, strict=True) if fault in table]
        said = (
            fault if len(having) == len(resolved) else replace(fault, problem=f"with {having[0].name}: {fault.problem}")
        )
        faults.append(said)
    raise_faults(faults)
