"""``report.html`` and ``report.json``: one self-contained page, and the same figures for programs."""

import base64
import hashlib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, select_autoescape

from alignment.durable_files import write_text
from alignment.plain_text import printable
from alignment.report import distance_plots, evidence_words, feedback, lineage_graph, plots, words
from alignment.report.judges import judge_rows
from alignment.report.run_report import Curve, RunReport, WinRateReport
from alignment.report.svg import SvgFigure

STEP_CURVES = {  # of PPO: the curve, and what its axis says
    "score": "score",
    "kl": "KL from the start (nats an answer)",
    "held_out_win_rate": "held-out win rate against the start",
}
PAIRWISE = {"reward", "pair_classifier", "dpo"}  # kinds of stages whose loss starts at log 2


def write_report(report: RunReport, folder: Path) -> Path:
    """Writes ``report.json`` and ``report.html`` into a run's folder, each whole or not at all. Returns the page."""
    page = render(report)
    write_text(folder / "report.json", report.model_dump_json(indent=1) + "\n")
    write_text(folder / "report.html", page)
    return folder / "report.html"


def render(report: RunReport) -> str:
    """The page. Every text of the report is escaped; the page asks for nothing from outside itself."""
    rate = main_rate(report)
    page = (
        page_environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            **page_frame(),
            words=words,
            said=evidence_words,
            judge_rows=judge_rows,
            feedback=feedback,
            outcome=words.outcome(report),
            rate=rate,
            strip=plots.verdict_strip(rate, report.evaluation.prompts) if rate and report.evaluation else None,
            losses=_loss_figures(report),
            way_figures=[distance_plots.way_plot(one) for one in report.overoptimisations],
            tournament_figures=[distance_plots.tournament_plot(one) for one in report.tournaments],
            reward_figures=[
                draw(reward) for reward in report.rewards for draw in (plots.margin_plot, plots.calibration_plot)
            ],
            evaluation_figures=_evaluation_figures(report),
            wide=lineage_graph.draw(report.lineage) if report.lineage else None,
            tall=lineage_graph.draw(report.lineage, downwards=True) if report.lineage else None,
            longest=max((stage.seconds for stage in report.stages), default=0.0) or 1.0,
        )
    )
    return printable(page)


def page_environment(*packages: str) -> Environment:
    """What renders a page: templates of this package and of others, every text escaped, numbers as words has them."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, ".") for package in ("alignment.report", *packages)]),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": words.percent,
        "duration": words.duration,
        "count": words.count,
        "figure": words.figure,
        "short": words.short,
    }
    return environment


def page_frame() -> dict[str, str]:
    """The style sheet and the script that stand in every page, and the digest by which the page allows the script."""
    script = _text("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return {"css": _text("report.css"), "script": script, "script_digest": digest}


def figures(report: RunReport) -> list[SvgFigure]:
    """What the run as a whole has to show: the reward models, the evaluation and the experiments."""
    found = [draw(reward) for reward in report.rewards for draw in (plots.margin_plot, plots.calibration_plot)]
    found += _evaluation_figures(report)
    found += [distance_plots.way_plot(one) for one in report.overoptimisations]
    return found + [distance_plots.tournament_plot(one) for one in report.tournaments]


def stage_figures(name: str, kind: str, curves: Mapping[str, Curve]) -> list[SvgFigure]:
    """What one stage has to show of its training: the same figures as in the report."""
    found = [
        plots.step_curve(name, words, curves[metric])
        for metric, words in STEP_CURVES.items()
        if kind == "ppo" and len(curves.get(metric, ())) > 1
    ]
    if len(curves.get("loss", ())) > 1:
        found.append(plots.loss_curve(name, curves["loss"], pairwise=kind in PAIRWISE))
    return found


def main_rate(report: RunReport) -> WinRateReport | None:
    """The win rate that the verdict quotes: the first against the base model, else the first."""
    rates = report.evaluation.win_rates if report.evaluation else ()
    return next((rate for rate in rates if rate.opponent == "base"), rates[0] if rates else None)


def _loss_figures(report: RunReport) -> list[SvgFigure]:
    """Score, KL and held-out win rate of PPO; then the loss of what is trained on examples."""
    kinds = {stage.name: stage.kind for stage in report.stages}
    found = [one for name, curves in report.curves.items() for one in stage_figures(name, kinds.get(name, ""), curves)]
    return sorted(found, key=lambda figure: figure.title.startswith("Loss of"))


def _evaluation_figures(report: RunReport) -> list[SvgFigure]:
    found = report.evaluation
    if found is None:
        return []
    figures = [plots.win_rate_plot(found.win_rates, found.candidate, found.prompts)] if found.win_rates else []
    if found.opponent and found.judge and len(found.by_kind) > 1:
        judged_by = next((rate.judged_by for rate in found.win_rates if rate.judge == found.judge), "")
        figures.append(plots.kinds_plot(found.by_kind, found.candidate, found.opponent, found.judge, judged_by))
    if any(found.lengths.values()):
        figures.append(plots.length_plot(found))
    return figures


def _text(name: str) -> str:
    return resources.files("alignment.report").joinpath(name).read_text("utf-8")
