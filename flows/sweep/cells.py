"""The runs that a sweep is made of: a variant with a seed, as a recipe of its own that any run would take."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment.recipe.base import Part
from alignment.recipe.deployment import Deployment
from alignment.recipe.recipe import Recipe
from alignment.recipe.resolved import ResolvedRecipe
from alignment.recipe.stages.experiments.tournament import OTHER_HALF
from alignment.recipe.stages.spec import StageSettings
from alignment.records import Artifact
from alignment.sweeps.objective import screening
from alignment.workspace import Workspace
from flows.pipeline.cached_stages import cached_stages
from flows.pipeline.launch import found_good
from flows.recipe_source import prepare
from flows.runs import keep_recipe, read_report, run_folders
from flows.sweep.keys import needed_for
from flows.sweep.variants import CheckedSweep

SCREENING = "screening"
SEEDS = 2**31


@dataclass(frozen=True, slots=True)
class SweepCell:
    """One run of a sweep: variant number ``place`` with a ``seed``, up to the stage ``target``."""

    place: int
    variant: str
    seed: int
    target: str
    resolved: ResolvedRecipe

    @property
    def name(self) -> str:
        return f"{self.variant}, seed {self.seed}"

    @property
    def file(self) -> Path:
        """Its recipe."""
        return self.resolved.path


def seed_of(recipe: Recipe, offset: int) -> int:
    """The seed of the repetition number ``offset``, from 0: the recipe's own, and those that follow it."""
    return (recipe.seed + offset) % SEEDS


def compared_half(part: Part) -> Part:
    """The half of the held-out prompts on which variants are compared, where an evaluation asks ``part`` of them."""
    return OTHER_HALF.get(part, "first half")


def fresh_half(part: Part) -> Part:
    """The half that takes no part in the comparison, and is left for the gate."""
    return OTHER_HALF[compared_half(part)]


def screening_name(recipe: Recipe) -> str:
    """A name for the stage that asks training prompts, which no other stage has."""
    name, number = SCREENING, 1
    while name in recipe.stages:
        number += 1
        name = f"{SCREENING}-{number}"
    return name


def make_cell(
    checked: CheckedSweep, place: int, offset: int, folder: Path, workspace: Workspace, *, screen: bool
) -> SweepCell:
    """A run of the sweep, whose recipe is written to ``folder``: up to the look at training prompts, where ``screen``
    says so, else up to the held-out evaluation.

    It promotes nothing and tells nobody: it has no gate, and no notices.
    """
    variant = checked.variants[place]
    recipe = variant.resolved.recipe
    target = screening_name(recipe) if screen else checked.evaluation
    seed = seed_of(recipe, offset)
    written = variant.resolved.model_copy(update={"recipe": cell_recipe(checked, place, offset, target)})
    path = folder / f"{place + 1}-seed-{seed}-{target}.yaml"
    keep_recipe(path, written, workspace)
    resolved = prepare(str(path))
    found_good(resolved, workspace)  # the variant was checked
    return SweepCell(place, variant.name, seed, target, resolved)


def cell_recipe(checked: CheckedSweep, place: int, offset: int, target: str) -> Recipe:
    """The recipe of variant number ``place`` for one seed, with what ``target`` stands on and nothing else.

    Stages that are the same in all variants, and those that measure, keep the recipe's seed: the former are made once,
    the latter ask every model the same with the same draws. A repetition gives the others a seed of its own.
    """
    recipe, measured = checked.variants[place].resolved.recipe, checked.settings_of(place)
    stages: dict[str, StageSettings] = dict(recipe.stages)
    stages[checked.evaluation] = measured.model_copy(update={"part": compared_half(measured.part)})
    if target != checked.evaluation:
        del stages[checked.evaluation]
        stages[target] = screening(measured, checked.objective)
    whole = recipe.model_copy(update={"stages": stages, "gate": None})
    needed = needed_for(whole, [target])
    kept = {
        name: _seeded(stage, recipe, offset) if name in checked.varied and not stage.evaluates() else stage
        for name, stage in stages.items()
        if name in needed
    }
    return whole.model_copy(update={"stages": kept, "notify": None, "deployment": Deployment()})


def _seeded(stage: StageSettings, recipe: Recipe, offset: int) -> StageSettings:
    """A stage with the seed of a repetition; the first draws as the recipe says."""
    if offset == 0:
        return stage
    own = stage.seed_used()
    return stage.model_copy(update={"seed": ((recipe.seed if own is None else own) + offset) % SEEDS})


def made_by(cell: SweepCell, workspace: Workspace, runs: Mapping[str, str]) -> Artifact | None:
    """What a run's last stage has made, whole; None where that is not there yet.

    Where the cache cannot tell it (a stage that reads the champion, or votes), the run's report does.
    """
    states = cached_stages(cell.resolved, workspace)
    if all(found.state == "cached" for found in states.values()):
        return states[cell.target].artifact
    if not all(found.state in ("cached", "unknown") for found in states.values()) or cell.file.stem not in runs:
        return None
    report = read_report(workspace.root / "runs" / runs[cell.file.stem])
    return _output(report or {}, cell.target, workspace)


def run_of(cell: SweepCell, workspace: Workspace) -> str | None:
    """The newest run of a cell's recipe."""
    for folder in run_folders(workspace):
        report = read_report(folder)
        if report is not None and report["recipe_digest"] == cell.resolved.digest:
            return folder.name
    return None


def _output(report: Mapping[str, Any], stage: str, workspace: Workspace) -> Artifact | None:
    for one in report.get("stages", ()):
        if one["name"] == stage and one["status"] == "completed" and one["outputs"]:
            artifact = workspace.artifact(stage, one["outputs"][0]["version"])
            return artifact if workspace.damage(artifact) is None else None
    return None


def failure_of(workspace: Workspace, run: str | None) -> str:
    """What a run's report says that went wrong, in a line; empty where it says nothing."""
    report = read_report(workspace.root / "runs" / run) if run is not None else None
    for stage in (report or {}).get("stages", ()):
        if stage["status"] == "failed":
            return f"{stage['name']}: {' '.join(stage['error'].split())}"
    return ""


def waits(workspace: Workspace, run: str | None) -> bool:
    """Whether a run waits for people's votes."""
    report = read_report(workspace.root / "runs" / run) if run is not None else None
    return any(stage["status"] == "waiting" for stage in (report or {}).get("stages", ()))
