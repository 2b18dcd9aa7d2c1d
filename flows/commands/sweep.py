"""``rlhf sweep``: variants of a recipe beside each other. It promotes nothing."""

from pathlib import Path

from rich.table import Table
from rich.text import Text

from alignment.report.words import percent, percent_range, short
from alignment.sweeps.grid import read_axes, variants_of
from alignment.sweeps.report import SweepReport, VariantReport
from flows.console import PlainConsole, styled
from flows.failures import open_workspace
from flows.services import servers

COLOURS = {"best": "green", "alike": "cyan", "worse": "red", "stopped": "yellow", "failed": "red", "waiting": "yellow"}
WORDS = {"alike": "not told apart", "waiting": "waits for raters"}


def sweep_command(
    given: str,
    workspace: Path,
    overrides: list[str],
    over: list[str],
    *,
    seeds: int,
    by: str | None,
    keep_all: bool,
    parallel: int | None,
) -> int:
    """Runs the variants and compares them. Returns the exit code: 0, or 1 where a variant failed."""
    console = PlainConsole()
    axes = read_axes(over)
    space = open_workspace(workspace)
    servers.quiet_environment(space)
    from flows.sweep.sweep import Sweep, page_of, plan_lines
    from flows.sweep.variants import check_sweep

    checked = check_sweep(given, axes, variants_of(axes), overrides, space, by=by)
    sweep = Sweep(
        checked, seeds, space, console, keep_all=keep_all, parallel=parallel, given=given, overrides=overrides
    )  # fmt: skip
    for line in plan_lines(sweep):
        console.print(line)
    report = sweep.run()
    say_found(report, console)
    console.print(f"\n{'page':<15} {page_of(sweep)}")
    return 1 if report.failed else 0


def say_found(report: SweepReport, console: PlainConsole) -> None:
    """The table, the verdict, and what to do next."""
    console.print(styled("\n", (report.sweep, "bold"), f": {report.figure}, {report.prompts} held-out prompts"))
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("variant", "mean", *(f"seed {seed}" for seed in report.seeds), "behind the best", ""):
        table.add_column(title, style=None, header_style="dim")
    order = sorted(report.variants, key=lambda one: -(one.mean.value if one.mean else float("-inf")))
    for one in order:
        table.add_row(
            styled(one.name), styled(_mean(one, share=report.share)),
            *(styled("–" if run.value is None else _figure(run.value, share=report.share)) for run in one.seeds),
            styled(_behind(one, share=report.share)),
            Text(WORDS.get(one.outcome, one.outcome), COLOURS.get(one.outcome, "")),
        )  # fmt: skip
    console.print(table)
    console.print(report.verdict)
    for one in (one for one in report.variants if one.note):
        console.print(styled((one.name, "bold"), f": {one.outcome}, {one.note}"))
    if report.look is not None:
        console.print(
            f"{report.look.looks} looks at these held-out prompts are written down; the next one at them is number "
            f"{report.look.next_number}"
        )
    for step in report.commands:
        console.print(f"\nNothing was promoted. {step.purpose}:\n{step.line}")


def _figure(value: float, *, share: bool) -> str:
    return percent(value) if share else short(value)


def _mean(one: VariantReport, *, share: bool) -> str:
    if one.mean is None:
        return "–"
    ends = percent_range(one.mean.low, one.mean.high) if share else f"{short(one.mean.low)} to {short(one.mean.high)}"
    return f"{_figure(one.mean.value, share=share)} ({ends})"


def _behind(one: VariantReport, *, share: bool) -> str:
    if one.behind is None:
        return "–"
    scale, unit = (100, " points") if share else (1, "")
    low, value, high = (short(scale * part) for part in (one.behind.low, one.behind.value, one.behind.high))
    return f"{value} ({low} to {high}){unit}"
