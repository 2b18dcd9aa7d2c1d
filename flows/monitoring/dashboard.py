"""What Prefect's dashboard shows of a run beside its tasks: figures, tables, pictures and links, as Prefect artifacts.

Pictures are SVG inside the artifact (``data:`` addresses), so they show wherever the dashboard is read from. Nothing
here may fail a run or hold it up: it is sent from the background.
"""

import base64
import re
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext, TaskRunContext

from alignment.plain_text import markdown, markdown_code
from alignment.records import Artifact
from alignment.registry.store import read_curves
from alignment.report import RunReport
from alignment.report.page import figures, stage_figures
from alignment.report.svg import SvgFigure
from alignment.report.svg_export import figure_svg, lineage_svg
from alignment.report.words import headline
from flows.monitoring.background import background
from flows.monitoring.links import report_link

if TYPE_CHECKING:
    from preference_ui.quality.queue_stats import QueueStanding

P = ParamSpec("P")


def _shown(work: Callable[P, None]) -> Callable[P, None]:
    @wraps(work)
    def tried(*args: P.args, **kwargs: P.kwargs) -> None:
        if FlowRunContext.get() is not None or TaskRunContext.get() is not None:
            background.later(lambda: work(*args, **kwargs))

    return tried


def slug(name: str) -> str:
    """A key for Prefect's artifacts, which take small letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


@_shown
def show_artifact(artifact: Artifact, kind: str) -> None:
    """A stage's artifact: what it is made of, its metrics as a table, its curves as pictures."""
    rows = [{"metric": name, "value": f"{value:.4g}"} for name, value in sorted(artifact.metrics.items())]
    made_of = ", ".join(str(ref) for ref in artifact.inputs.values()) or "–"
    text = f"**{markdown(str(artifact.ref()))}** ({markdown(artifact.kind)}), made of {markdown(made_of)}\n\n"
    text += f"{artifact.seconds:.1f} s, {artifact.tokens_trained:,} tokens trained, {artifact.tokens_sampled:,} sampled"
    key = slug(artifact.name)
    create_markdown_artifact(text, key=f"{key}-result", description=f"{artifact.name} v{artifact.version}")
    if rows:
        create_table_artifact(rows, key=f"{key}-metrics", description=f"Metrics of {artifact.name} v{artifact.version}")
    curves = {name: tuple(curve) for name, curve in read_curves(Path(artifact.path)).items()}
    for one in stage_figures(artifact.name, kind, curves):
        _picture(figure_svg(one), slug(one.title), one.alternative)


class ProgressBar:
    """A stage's bar on the dashboard, moved from the background: the newest step, whenever the server takes it."""

    def __init__(self, key: str) -> None:
        self.key = key
        self._artifact: Any = None

    def show(self, percent: float, text: str) -> None:
        """Moves the bar; outside of a task there is none."""
        if TaskRunContext.get() is not None:
            background.later(lambda: self._move(percent, text), key=self.key)

    def _move(self, percent: float, text: str) -> None:
        if self._artifact is None:
            self._artifact = create_progress_artifact(percent, key=self.key, description=text)
        else:
            update_progress_artifact(self._artifact, percent, description=text)


@_shown
def show_report(report: RunReport, page: Path) -> None:
    """A run that has ended: the verdict, its stages, its pictures, its lineage, and where the page is."""
    create_markdown_artifact(story(report, page), key="run", description=f"How {report.run} ended")
    rows = [
        {"stage": one.name, "kind": one.kind, "status": "cached" if one.cached else one.status,
         "seconds": round(one.seconds, 1), "made": ", ".join(str(ref) for ref in one.outputs)}
        for one in report.stages
    ]  # fmt: skip
    create_table_artifact(rows, key="stages", description=f"Stages of {report.run}")
    if address := report_link(page):
        create_link_artifact(address, "report.html", key="report", description=f"Report of {report.run}")
    if report.lineage:
        _picture(lineage_svg(report.lineage), "lineage", f"What {report.run} was made of")
    for one in figures(report):
        _picture(figure_svg(one), slug(one.title), one.alternative)


def _whole_report(page: Path) -> str:
    address = report_link(page)
    return f"[The whole report](<{address}>)" if address else f"The whole report: {markdown_code(str(page.resolve()))}"


def story(report: RunReport, page: Path) -> str:
    """The run in Markdown, from the verdict to the lineage; pictures inside."""
    parts = [f"# {markdown(report.run)}", markdown(headline(report)), _whole_report(page)]
    if report.gate:
        checks = "\n".join(
            f"| {'✓' if check.passed else '✗'} | {markdown(str(check))} |" for check in report.gate.checks
        )
        parts.append(f"## Gate\n\n{markdown(str(report.gate.look or ''))}\n\n| | condition |\n|---|---|\n{checks}")
    parts.append("## Stages\n\n| stage | kind | | seconds | made |\n|---|---|---|---|---|\n" + "\n".join(
        f"| {markdown(one.name)} | {markdown(one.kind)} | {'cached' if one.cached else one.status} | "
        f"{one.seconds:.1f} | {markdown(', '.join(str(ref) for ref in one.outputs))} |"
        for one in report.stages
    ))  # fmt: skip
    found: list[SvgFigure] = figures(report)
    if found:
        parts.append("## Evidence\n\n" + "\n\n".join(_image(one.title, figure_svg(one)) for one in found))
    if report.lineage:
        parts.append("## Lineage\n\n" + _image("lineage", lineage_svg(report.lineage)))
    return "\n\n".join(parts)


@_shown
def show_queues(queues: "Sequence[QueueStanding]") -> None:
    """How far the raters are and how far they agree, when a run begins to wait for them."""
    from preference_ui.quality.queue_stats import standing_text

    create_markdown_artifact(standing_text(queues), key="raters", description="The raters' queues")


@_shown
def name_version(run: str, version: str) -> None:
    """Adds the version that a run made to the name of the flow run."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return
    with get_client(sync_client=True) as client:
        client.update_flow_run(context.flow_run.id, name=f"{run}: {version}")


def _picture(svg: str, key: str, description: str) -> None:
    create_image_artifact(_data_url(svg), key=key, description=description)


def _image(title: str, svg: str) -> str:
    return f"![{markdown(title)}]({_data_url(svg)})"


def _data_url(svg: str) -> Any:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
