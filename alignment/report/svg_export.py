"""The report's figures as pictures of their own: SVG files that carry their style with them, for other pages."""

from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from alignment.plain_text import printable
from alignment.report import lineage_graph
from alignment.report.run_report import LineageReport
from alignment.report.svg import SvgFigure

MARGIN, TOP, FOOT = 14.0, 38.0, 34.0


def figure_svg(figure: SvgFigure, *, scale: float = 1.6) -> str:
    """A figure with its title and caption, ``scale`` times as large as in the report."""
    return _render(
        title=figure.title, alternative=figure.alternative, figure=figure, scale=scale,
        width=figure.width + 2 * MARGIN, height=figure.height + TOP + (FOOT if figure.caption else MARGIN),
    )  # fmt: skip


def lineage_svg(lineage: LineageReport) -> str:
    """The lineage as a drawn graph, from the base model to the evaluation."""
    drawing = lineage_graph.draw(lineage)
    return _render(
        title="Lineage", alternative="What was made of what", drawing=drawing, scale=1.0,
        width=drawing.width + 2 * MARGIN, height=drawing.height + TOP + MARGIN,
    )  # fmt: skip


def _render(**values: Any) -> str:
    environment = Environment(
        loader=PackageLoader("alignment.report", "."), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    css = Markup(resources.files("alignment.report").joinpath("report.css").read_text("utf-8"))
    drawn = environment.get_template("picture.svg.j2").render(css=css, margin=MARGIN, top=TOP, **values)
    return printable(drawn)  # XML has no control characters
