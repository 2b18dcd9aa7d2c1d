"""``sweep.html`` and ``sweep.json``: one self-contained page, and the same figures for programs."""

from pathlib import Path

from alignment.durable_files import write_text
from alignment.plain_text import printable
from alignment.report import words
from alignment.report.page import page_environment, page_frame
from alignment.sweeps.figures import behind_plot, lead_words, setting_plots
from alignment.sweeps.report import SweepReport, VariantReport

OUTCOMES = {
    "best": "highest mean", "alike": "not told apart", "worse": "worse", "stopped": "stopped early", "failed": "failed",
    "waiting": "waits for raters", "unfinished": "unfinished",
}  # fmt: skip
PILLS = {"best": "completed", "worse": "failed", "failed": "failed"}  # the others are quiet


def write_sweep(report: SweepReport, folder: Path) -> Path:
    """Writes ``sweep.json`` and ``sweep.html`` into a sweep's folder, each whole or not at all. Returns the page."""
    page = render_sweep(report)
    write_text(folder / "sweep.json", report.model_dump_json(indent=1) + "\n")
    write_text(folder / "sweep.html", page)
    return folder / "sweep.html"


def render_sweep(report: SweepReport) -> str:
    """The page. Every text is escaped; the page asks for nothing from outside itself."""
    behind = behind_plot(report)
    template = page_environment("alignment.sweeps").get_template("sweep.html.j2")
    return printable(
        template.render(
            report=report,
            **page_frame(),
            ordered=sorted(report.variants, key=_rank),
            figures=[*([behind] if behind else []), *setting_plots(report)],
            outcomes=OUTCOMES,
            pills=PILLS,
            words=words,
            lead_words=lead_words,
            seconds=(report.finished - report.started).total_seconds(),
        )
    )


def _rank(one: VariantReport) -> float:
    """By mean, the highest first; what has none comes last."""
    return -one.mean.value if one.mean is not None else float("inf")
