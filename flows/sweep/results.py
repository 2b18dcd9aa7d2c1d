"""What the runs of a sweep brought, put together for its page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from alignment.evaluation.bootstrap import Floats
from alignment.evaluation.looks import HeldOutSet, level_of
from alignment.recipe.recipe import Recipe
from alignment.records import Artifact
from alignment.sweeps.comparison import HeldOutComparison, compare
from alignment.sweeps.report import (
    HeldOutLook,
    NextStep,
    Outcome,
    SeedRun,
    StageCounts,
    SweepReport,
    VariantReport,
)
from alignment.sweeps.stopping import Stop
from alignment.workspace import Workspace
from flows.command_lines import rlhf_line
from flows.pipeline.cached_stages import cached_stages
from flows.sweep.cells import SweepCell, compared_half, fresh_half, seed_of
from flows.sweep.keys import planned_keys
from flows.sweep.variants import CheckedSweep


@dataclass(slots=True)
class Result:
    """How a variant stands: ``outcome`` is empty while it is in the race, ``values`` are the held-out ones."""

    place: int
    name: str
    outcome: Outcome = "unfinished"
    note: str = ""
    values: Floats | None = None

    @property
    def left_out(self) -> bool:
        """Whether it takes no further part."""
        return self.outcome != "unfinished"


@dataclass(frozen=True, slots=True)
class Findings:
    """What a sweep's report is made of. ``runs`` are named by variant and repetition."""

    name: str
    checked: CheckedSweep
    seeds: int
    results: Sequence[Result]
    stops: Sequence[Stop]
    screened: int
    runs: Mapping[tuple[int, int], str | None]
    counts: StageCounts
    look: HeldOutLook | None
    started: datetime
    given: str
    overrides: Sequence[str]
    workspace: Workspace


@dataclass(slots=True)
class Looks:
    """The looks at held-out prompts that a sweep takes: every evaluation is one, and spends of the prompts' level.

    Each is written to the registry of looks before its figures are compared, and once, however often the sweep goes on.
    """

    workspace: Workspace
    recipe: Recipe
    identities: set[str] = field(default_factory=set)
    held_out: HeldOutSet | None = None

    def record(self, evaluation: Artifact, run: str) -> None:
        """Writes down the look that an evaluation is."""
        if evaluation.digest in self.identities:
            return
        from alignment.registry.looks import record_look  # MLflow takes its time

        look = record_look(
            self.workspace, evaluation, run=run, recipe=self.recipe.name, model=self.recipe.model.registered_name
        )
        self.identities.add(evaluation.digest)
        self.held_out = look.held_out

    def told(self) -> HeldOutLook | None:
        """What a next look at the same prompts would be held to; None where nothing was looked at."""
        if self.held_out is None:
            return None
        from alignment.registry.looks import next_number

        number = next_number(self.workspace, self.held_out)
        return HeldOutLook(looks=len(self.identities), next_number=number, next_level=level_of(number))


def stage_counts(checked: CheckedSweep, cells: Sequence[SweepCell], workspace: Workspace) -> StageCounts:
    """How many stages the runs have, how many of them are different ones, and how many are there already."""
    every, cached = list[tuple[str, str]](), set[tuple[str, str]]()
    for cell in cells:
        keys = planned_keys(cell.resolved, workspace)
        states = cached_stages(cell.resolved, workspace)
        every += [(name, keys[name]) for name in states]
        cached |= {(name, keys[name]) for name, found in states.items() if found.state == "cached"}
    order = [name for name in checked.recipe.stages if name in checked.needed]
    return StageCounts(
        shared=tuple(name for name in order if name not in checked.varied),
        varied=tuple(name for name in order if name in checked.varied),
        total=len(every), distinct=len(set(every)), cached=len(cached),
    )  # fmt: skip


def report_of(found: Findings) -> SweepReport:
    """The sweep's report; nothing in it is promoted."""
    checked, recipe = found.checked, found.checked.recipe
    whole = {one.name: one.values for one in found.results if one.values is not None}
    comparison = compare(whole) if len(whole) > 1 else None
    problem = "" if comparison is not None else _nothing_to_compare(found, len(whole))
    return SweepReport(
        sweep=found.name, recipe_name=recipe.name, description=recipe.description,
        keys=tuple(key for key, _value in checked.variants[0].variant.settings), evaluation=checked.evaluation,
        candidate=" or ".join(
            dict.fromkeys(checked.settings_of(place).model for place in range(len(checked.variants)))
        ), metric=checked.objective.name, figure=checked.objective.words,
        share=checked.objective.is_share, part=compared_half(checked.settings.part),
        prompts=comparison.prompts if comparison else 0,
        seeds=tuple(seed_of(recipe, offset) for offset in range(found.seeds)),
        variants=tuple(_variant(found, one, comparison) for one in found.results), comparison=comparison,
        stops=tuple(found.stops), screened=found.screened, stages=found.counts, look=found.look,
        commands=tuple(_next(found, comparison)), started=found.started, finished=datetime.now(UTC), problem=problem,
    )  # fmt: skip


def _left(found: Findings) -> Result | None:
    """The only variant that was neither stopped nor failed, where others were stopped."""
    left = [one for one in found.results if not one.left_out]
    return left[0] if len(left) == 1 and found.stops else None


def _nothing_to_compare(found: Findings, whole: int) -> str:
    if (left := _left(found)) is not None:
        return (
            f"{left.name} is the only one left: on training prompts it was clearly ahead. No held-out prompt was asked."
        )
    return f"{whole} of {len(found.results)} variants came to the end: there is nothing to compare."


def _variant(found: Findings, result: Result, comparison: HeldOutComparison | None) -> VariantReport:
    outcome: Outcome = result.outcome
    if result is _left(found):
        outcome = "best"
    elif comparison is not None and result.values is not None:
        outcome = "best" if result.name == comparison.best else "alike" if result.name in comparison.alike else "worse"
    means = None if result.values is None else result.values.mean(axis=0).tolist()
    return VariantReport(
        name=result.name,
        settings=dict(found.checked.variants[result.place].variant.settings),
        outcome=outcome,
        seeds=tuple(
            SeedRun(
                seed=seed_of(found.checked.recipe, offset), run=found.runs.get((result.place, offset)),
                value=None if means is None else means[offset],
            )
            for offset in range(found.seeds)
        ),
        mean=comparison.means.get(result.name) if comparison else None,
        behind=comparison.behind(result.name) if comparison and result.values is not None else None,
        note=result.note,
    )  # fmt: skip


def _next(found: Findings, comparison: HeldOutComparison | None) -> list[NextStep]:
    """The run that asks the best variant the prompts that chose nothing, and lets the gate decide."""
    left = _left(found)
    name = comparison.best if comparison is not None else left.name if left is not None else ""
    best = next((one for one in found.checked.variants if one.name == name), None)
    if best is None:
        return []
    half = fresh_half(found.checked.settings.part)
    fresh = [f"stages.{found.checked.evaluation}.part={half}"] if comparison is not None else []
    sets = [word for one in (*found.overrides, *best.variant.overrides, *fresh) for word in ("--set", one)]
    recipe = str(Path(found.given).resolve()) if Path(found.given).is_file() else found.given
    gated = found.checked.recipe.gate is not None
    decides = "Let the gate decide on the best" if gated else "Measure the best (the recipe has no gate to promote it)"
    asked = f"the {half} of the held-out prompts" if comparison is not None else "held-out prompts"
    purpose = f"{decides}, on {asked}, which chose nothing"
    return [NextStep(purpose=purpose, line=rlhf_line("run", recipe, *sets, workspace=found.workspace.root))]
