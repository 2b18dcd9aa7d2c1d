"""The terminal during a run: a live table of stages where there is a terminal, a line per event where there is none."""

import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from alignment.plain_text import indented, one_line
from alignment.recipe.base import BASE, MADE_BASE
from alignment.recipe.recipe import Recipe

if TYPE_CHECKING:
    pass
from types import TracebackType
from typing import Self

from rich.live import Live
from rich.text import Text

from alignment.stage import Progress
from flows.console import styled

SHOWN = ("loss", "accuracy", "rewards/accuracies", "reward", "mean_token_accuracy", "win_rate")  # most telling first
QUIET_SECONDS = 15.0  # without a terminal, progress is said this often


def describe(progress: Progress, seconds: float) -> str:
    """Step, the most telling metric, tokens a second and time left, in one short line."""
    parts = [f"{progress.step}/{progress.total}"]
    parts += [f"{name.split('/')[-1]} {progress.metrics[name]:.3f}" for name in SHOWN if name in progress.metrics][:2]
    if progress.tokens and seconds > 0:
        parts.append(f"{progress.tokens / seconds:,.0f} tokens/s")
    if 0 < progress.step < progress.total:
        parts.append(f"{clock(seconds / progress.step * (progress.total - progress.step))} left")
    return "  ".join(parts)


def clock(seconds: float) -> str:
    """Seconds as ``m:ss``, or with a decimal below ten."""
    return f"{seconds:.1f} s" if seconds < 10 else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class Terminal:
    """Shows a run. A context manager: inside it the table is live."""

    def __init__(self, stages: dict[str, str], console: Console) -> None:
        self.console = console
        self.started: dict[str, float] = {}
        self.rows: dict[str, list[str]] = {name: [kind, "waiting", "", ""] for name, kind in stages.items()}
        self.live = (
            Live(get_renderable=self._table, console=console, refresh_per_second=4) if console.is_terminal else None
        )
        self.first: dict[str, Progress] = {}
        self.said: dict[str, float] = {}

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()

    def stage_started(self, name: str, kind: str) -> None:
        """Marks the stage as running."""
        self.started[name] = self.said[name] = time.monotonic()
        self.rows[name] = [kind, "running", "", ""]

    def stage_progress(self, name: str, progress: Progress) -> None:
        """Shows the newest step; the rate counts from the first report, so a resumed stage tells the truth."""
        first = self.first.setdefault(name, progress)
        seconds = time.monotonic() - self.started[name]
        rate = Progress(
            progress.step, progress.total, progress.metrics, progress.tokens - (first.tokens if first.step > 1 else 0)
        )
        self.rows[name][3] = text = describe(rate, seconds)
        if self.live is None and time.monotonic() - self.said[name] > QUIET_SECONDS:
            self.said[name] = time.monotonic()
            self.console.print(styled(f"  {name}: {text}"))

    def stage_finished(self, name: str, *, status: str, cached: bool, seconds: float, summary: str) -> None:
        """Marks the stage as done, cached or failed."""
        word = "cached" if cached else status
        kind = self.rows.get(name, [name])[0]
        summary = one_line(summary)
        self.rows[name] = [kind, word, clock(seconds), summary]
        if self.live is None:
            self.console.print(styled(f"{name:<12} {word:<10} {clock(seconds):>7}  {summary}"), soft_wrap=True)

    def warned(self, line: str) -> None:
        """Says it, above the table where there is one."""
        self.console.print(indented(line), markup=False, highlight=False, soft_wrap=True)

    def _table(self) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        colours = {"running": "cyan", "completed": "green", "cached": "blue", "failed": "red", "waiting": "dim"}
        for name, (kind, word, seconds, text) in self.rows.items():
            took = clock(time.monotonic() - self.started[name]) if word == "running" else seconds
            table.add_row(
                styled(name), Text(kind, "dim"), Text(word, colours.get(word, "")), Text(took, justify="right"),
                styled(text),
            )  # fmt: skip
        return table


def shown_stages(recipe: Recipe) -> dict[str, str]:
    """The rows of the display: the base model, the recipe's stages, and the registry where there is a gate."""
    first = {} if recipe.model.base == MADE_BASE else {BASE: "base"}
    stages = first | {name: stage.kind for name, stage in recipe.stages.items()}
    return stages | ({"register": "register"} if recipe.gate else {})
