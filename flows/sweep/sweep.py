"""A sweep from its plan to its page: seed after seed, losers stopped in between, then held-out prompts."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from alignment.digests import digest_of
from alignment.durable_files import write_text
from alignment.errors import StageError
from alignment.evaluation.bootstrap import Floats
from alignment.records import Artifact
from alignment.sweeps.objective import screening, values_of
from alignment.sweeps.page import write_sweep
from alignment.sweeps.report import SweepReport
from alignment.sweeps.stopping import FIRST_LOOK, Stop, clear_losers, looks_of
from alignment.workspace import Workspace
from flows.cluster import fitting_at_once
from flows.console import PlainConsole, styled
from flows.shutdown import leaving_on_sigterm
from flows.sweep.cells import SweepCell, failure_of, made_by, make_cell, run_of, seed_of, waits
from flows.sweep.keys import planned_keys
from flows.sweep.results import Findings, Looks, Result, report_of, stage_counts
from flows.sweep.side_by_side import one_at_a_time, run_cells
from flows.sweep.variants import CheckedSweep

RUNS_FILE = "runs.json"


class Sweep:
    """A sweep under way."""

    def __init__(
        self, checked: CheckedSweep, seeds: int, workspace: Workspace, console: PlainConsole, *, keep_all: bool,
        parallel: int | None, given: str, overrides: Sequence[str],
    ) -> None:  # fmt: skip
        self.checked, self.seeds, self.workspace, self.console = checked, seeds, workspace, console
        self.given, self.overrides = given, tuple(overrides)
        self.parallel = parallel if parallel is not None else fitting_at_once(checked.recipe.resources)
        self.screens = looks_of(seeds) > 0 and not keep_all and checked.recipe.data.prompts is not None
        self.started = datetime.now(UTC)
        self.folder = workspace.folder("sweeps", self._name())
        self.runs: dict[str, str] = self._known_runs()
        self.cells: dict[tuple[int, int, bool], SweepCell] = {}
        self.results = [Result(place, one.name) for place, one in enumerate(checked.variants)]
        self.stops: list[Stop] = []
        self.looks = Looks(workspace, checked.recipe)
        self.screened = 0
        self.asked: dict[bool, list[str]] = {}  # the prompts of each look, on the training split and held out
        cells = [self.cell(one.place, offset, screen=False) for one in self.results for offset in range(seeds)]
        self.counts = stage_counts(checked, cells, workspace)

    def run(self) -> SweepReport:
        """Runs all of it, and writes the page."""
        with one_at_a_time(self.folder), leaving_on_sigterm():
            if self.screens:
                for offset in range(self.seeds - 1):
                    self._race(offset)
            self._evaluate()
            report = report_of(self._findings())
            write_sweep(report, self.folder)
        return report

    def _findings(self) -> Findings:
        """What the report is made of."""
        runs = {
            (one.place, offset): self.runs.get(self.cell(one.place, offset, screen=False).file.stem)
            for one in self.results for offset in range(self.seeds)
        }  # fmt: skip
        return Findings(
            name=self.folder.name, checked=self.checked, seeds=self.seeds, results=self.results, stops=self.stops,
            screened=self.screened, runs=runs, counts=self.counts, look=self.looks.told(), started=self.started,
            given=self.given, overrides=self.overrides, workspace=self.workspace,
        )  # fmt: skip

    @property
    def alive(self) -> list[Result]:
        """The variants that are neither stopped nor failed."""
        return [one for one in self.results if not one.left_out]

    def cell(self, place: int, offset: int, *, screen: bool) -> SweepCell:
        """One run of the sweep; its recipe is written when it is first asked for."""
        key = (place, offset, screen)
        if key not in self.cells:
            home = self.workspace.folder("sweeps", self.folder.name, "cells")
            self.cells[key] = make_cell(self.checked, place, offset, home, self.workspace, screen=screen)
        return self.cells[key]

    def made(self, cell: SweepCell) -> Artifact | None:
        """What a run's last stage has made."""
        return made_by(cell, self.workspace, self.runs)

    def _race(self, offset: int) -> None:
        """Every variant with one more seed, on prompts of the training split; clear losers are stopped."""
        if len(self.alive) < 2:
            return  # nothing is left to be compared with
        self._make([self.cell(one.place, offset, screen=True) for one in self.alive])
        if offset + 1 < FIRST_LOOK or len(self.alive) < 2:
            return
        values = {one.name: self._values(one.place, offset + 1, screen=True) for one in self.alive}
        self.screened = max(len(one) for one in values.values())
        for stop in clear_losers(values, variants=len(self.results), looks=looks_of(self.seeds)):
            self.stops.append(stop)
            lost = next(one for one in self.results if one.name == stop.variant)
            lost.outcome = "stopped"
            lost.note = f"after {stop.seeds} seeds: {stop.by} is better on {stop.ahead.n} training prompts"
            self.console.print(styled((stop.variant, "bold"), " is stopped ", lost.note))

    def _evaluate(self) -> None:
        """The held-out evaluation of what is left, with every seed; each is written down as a look.

        Where all others were stopped there is nothing to compare, and held-out prompts are left alone.
        """
        if len(self.alive) == 1 and self.stops:
            return
        cells = [self.cell(one.place, offset, screen=False) for offset in range(self.seeds) for one in self.alive]
        self._make(cells)
        for one in self.alive:
            for offset in range(self.seeds):
                cell = self.cell(one.place, offset, screen=False)
                artifact = self.made(cell)
                assert artifact is not None
                self.looks.record(artifact, self.runs.get(cell.file.stem) or self.folder.name)
            one.values = self._values(one.place, self.seeds, screen=False)

    def _make(self, cells: Sequence[SweepCell]) -> None:
        """Runs those of ``cells`` that have not been made; what fails is noted, and its variant left out."""
        missing = [cell for cell in cells if self.made(cell) is None]
        if len(missing) < len(cells):
            self.console.print(f"{len(cells) - len(missing)} of {len(cells)} runs are made already")
        run_cells(
            missing, self.workspace, self.console, parallel=self.parallel, logs=self.folder / "logs", done=self._done,
            left_out=lambda cell: self.results[cell.place].left_out,
        )  # fmt: skip

    def _done(self, cell: SweepCell, code: int) -> None:
        """Notes how a run ended; a look at held-out prompts counts from the moment that its figures are there."""
        run = run_of(cell, self.workspace)
        if run is not None:
            self.runs[cell.file.stem] = run
            write_text(self.folder / RUNS_FILE, json.dumps(self.runs, indent=1) + "\n")
        artifact = self.made(cell)
        if artifact is not None:
            if cell.target == self.checked.evaluation:
                self.looks.record(artifact, run or self.folder.name)
            return
        result = self.results[cell.place]
        result.outcome = "waiting" if code == 0 and waits(self.workspace, run) else "failed"
        log = self.folder / "logs" / f"{cell.file.stem}.log"
        reason = failure_of(self.workspace, run) or f"exit code {code}" + (f", see {log}" if log.exists() else "")
        is_waiting = result.outcome == "waiting"
        result.note = f"seed {cell.seed} waits for raters' votes" if is_waiting else f"seed {cell.seed}: {reason}"
        self.console.print(styled((cell.name, "bold"), " ", (result.outcome, "red"), f": {result.note}"))

    def _values(self, place: int, seeds: int, *, screen: bool) -> Floats:
        """A variant's figure on each prompt with each seed."""
        cells = [self.cell(place, offset, screen=screen) for offset in range(seeds)]
        artifacts = [artifact for cell in cells if (artifact := self.made(cell)) is not None]
        ids, values = values_of(artifacts, self.checked.objective, self.checked.settings_of(place).model)
        if self.asked.setdefault(screen, ids) != ids:
            raise StageError("the variants were asked different prompts: they cannot be compared")
        return values

    def _name(self) -> str:
        """The same for the same sweep: of what its runs are made of, and how they are compared."""
        keys = [planned_keys(one.resolved, self.workspace) for one in self.checked.variants]
        needed = [{name: key for name, key in one.items() if name in self.checked.needed} for one in keys]
        told = [needed, self.seeds, self.checked.evaluation, self.checked.objective.name, self.screens]
        return f"{self.checked.recipe.name}-{digest_of(told)[:8]}"

    def _known_runs(self) -> dict[str, str]:
        try:
            found: dict[str, str] = json.loads((self.folder / RUNS_FILE).read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return found


def plan_lines(sweep: Sweep) -> list[str]:
    """What the sweep will take: runs, shared stages, and how losers are stopped."""
    counts = sweep.counts
    recipe, variants = sweep.checked.recipe, len(sweep.checked.variants)
    seeds = [seed_of(recipe, offset) for offset in range(sweep.seeds)]
    named = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {', '.join(map(str, seeds))}"
    lines = [
        f"{variants} variants with {named}: {variants * sweep.seeds} runs of {len(sweep.checked.needed)} stages, "
        f"{counts.distinct} different ones of {counts.total}, {counts.cached} of them in the cache; "
        f"{sweep.parallel} at a time",
        f"shared by all: {', '.join(counts.shared) or 'none'}; made for each: {', '.join(counts.varied)}",
    ]
    if sweep.screens:
        asked = screening(sweep.checked.settings, sweep.checked.objective).limit
        lines.append(
            f"clear losers are stopped between seeds, on {asked} prompts of the training split at most; "
            "--keep-all trains all to the end"
        )
    elif looks_of(sweep.seeds) == 0:
        lines.append(f"nothing is stopped early: the first seed that could be saved is number {FIRST_LOOK + 1}")
    return lines


def page_of(sweep: Sweep) -> Path:
    """Where the page of a sweep is."""
    return sweep.folder / "sweep.html"
