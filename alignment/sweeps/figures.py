"""The figures of a sweep's page: how far each variant is behind the best, and the figure along each numeric setting."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from alignment.evaluation.bootstrap import Difference
from alignment.report.svg import WIDTH, Dot, Label, Path, Plane, Rect, Shape, SvgFigure, nice_ticks, padded
from alignment.report.words import percent, short
from alignment.sweeps.grid import short_key, value_text
from alignment.sweeps.report import SweepReport, VariantReport

ROW, TOP = 46.0, 30.0
COLOURS = 5  # of lines that the style sheet has, beside the grey one
LOGARITHMIC = 10.0  # times the least value that the greatest must be for a logarithmic axis
TICK_ROOM = 34.0  # pixels between two labels of an axis


def behind_plot(report: SweepReport) -> SvgFigure | None:
    """Each variant's mean less that of the best, with the intervals that hold together; None for one variant alone."""
    rows = [(one, one.behind) for one in report.variants if one.behind is not None]
    if report.comparison is None or not rows:
        return None
    rows.sort(key=lambda row: row[1].value)
    scale = 100.0 if report.share else 1.0
    ends = [-scale * end for _one, lead in rows for end in (lead.low, lead.high)]
    bottom = TOP + ROW * len(rows)
    plane = Plane(padded([*ends, 0.0]), (0, 1), left=18, right=WIDTH - 20, top=TOP, bottom=bottom)
    unit = "points" if report.share else report.metric
    shapes = plane.axes(f"less the best ({unit})", "", nice_ticks(*plane.x_range), [])
    words = []
    for place, (one, lead) in enumerate(rows):
        y = TOP + ROW * place + 30
        low, value, high = (-scale * part for part in (lead.high, lead.value, lead.low))
        tip = f"{short(value)} ({short(low)} to {short(high)})"
        words.append(f"{one.name} {tip}")
        shapes += _row(plane, y, one.name, (low, value, high), tip, "bad" if one.outcome == "worse" else "open")
    return SvgFigure(
        title=f"Behind {report.comparison.best}",
        alternative=f"Each variant less the best, {report.comparison.best}: {'; '.join(words)}.",
        width=WIDTH,
        height=bottom + 44,
        shapes=tuple(shapes),
        caption="Intervals of all comparisons hold together. Red: worse than the best; what reaches the dashed line "
        "is not told apart from it.",
    )


def _row(plane: Plane, y: float, name: str, ends: tuple[float, float, float], tip: str, css: str) -> Iterable[Shape]:
    low, value, high = ends
    left, right = plane.x(low), plane.x(high)
    return [
        Label(plane.left, y - 14, _fitting(name, 30), "row-label"),
        Label(plane.right, y - 14, tip, "value", "end"),
        Rect(plane.left, y - 2, plane.right - plane.left, 4, "track", radius=2),
        Path(f"M{plane.x(0):.1f} {y - 9:.1f}V{y + 9:.1f}", "reference"),
        Rect(left, y - 3, max(right - left, 1), 6, f"interval {css}", tip, radius=3),
        Dot(plane.x(value), y, 5.5, f"mark {css}", f"{name}: {tip}"),
    ]


def _fitting(name: str, letters: int) -> str:
    return name if len(name) <= letters else f"{name[: letters - 1]}…"


def setting_plots(report: SweepReport) -> list[SvgFigure]:
    """The figure along each setting whose values are numbers, a line for each combination of the others."""
    return [_setting_plot(report, key) for key in report.keys if _numeric(report, key)]


def _numeric(report: SweepReport, key: str) -> bool:
    values = [one.settings[key] for one in report.variants if one.mean is not None]
    return len(set(map(value_text, values))) > 1 and all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in values
    )


def _setting_plot(report: SweepReport, key: str) -> SvgFigure:
    shown = [one for one in report.variants if one.mean is not None]
    values = sorted({float(one.settings[key]) for one in shown})
    is_log = values[0] > 0 and values[-1] / values[0] >= LOGARITHMIC
    lines = _lines(report, key, shown)
    heights = [height for one in shown if one.mean for height in (one.mean.low, one.mean.high)]
    heights += [run.value for one in shown for run in one.seeds if run.value is not None]
    legend = 18.0 * len(lines) if len(lines) > 1 else 0.0
    places = {value: _place(value, is_log=is_log) for value in values}
    span = padded(list(places.values()), 0.12)
    plane = Plane(span, padded(heights), top=14 + legend, bottom=170 + legend)
    y_ticks = nice_ticks(*plane.y_range)
    if report.share:
        y_ticks = [(value, percent(value)) for value, _text in y_ticks]
    axis = f"{short_key(key, report.keys)}{' (logarithmic)' if is_log else ''}"
    shapes = plane.axes(axis, "", _ticks(plane, places), y_ticks)
    for number, (name, line) in enumerate(lines):
        shapes += _series(plane, report, [(places[float(one.settings[key])], one) for one in line], number)
        if legend:
            y = 8 + 18.0 * number
            shapes += [Path(f"M2 {y:.1f}H22", f"line {_colour(number)}"), Label(30, y + 4, _fitting(name, 48))]
    told = "; ".join(f"{one.name} {_told(report, one)}" for one in shown)
    return SvgFigure(
        title=f"Along {short_key(key, report.keys)}",
        alternative=f"{report.figure} by {key}: {told}.",
        width=WIDTH,
        height=214 + legend,
        shapes=tuple(shapes),
        caption=f"{report.figure[0].upper()}{report.figure[1:]}. Large: the mean, with intervals that hold together "
        f"for all variants{'; small: each seed' if len(report.seeds) > 1 else ''}.",
    )


def _lines(report: SweepReport, key: str, shown: Sequence[VariantReport]) -> list[tuple[str, list[VariantReport]]]:
    """The variants that differ in ``key`` alone, with what the others of their settings are."""
    others = [other for other in report.keys if other != key]
    found: dict[str, list[VariantReport]] = {}
    for one in shown:
        name = ", ".join(f"{short_key(other, report.keys)}={value_text(one.settings[other])}" for other in others)
        found.setdefault(name, []).append(one)
    return [(name, sorted(line, key=lambda one: _number(one.settings[key]))) for name, line in found.items()]


def _number(value: Any) -> float:
    return float(value)


def _series(
    plane: Plane, report: SweepReport, points: Sequence[tuple[float, VariantReport]], number: int
) -> Iterable[Shape]:
    css = _colour(number)
    shapes: list[Shape] = []
    means = [(x, one.mean.value) for x, one in points if one.mean is not None]
    if len(means) > 1:
        shapes.append(plane.line(means, f"line {css}"))
    for x, one in points:
        if one.mean is None:
            continue
        shapes.append(
            Path(f"M{plane.x(x):.1f} {plane.y(one.mean.low):.1f}V{plane.y(one.mean.high):.1f}", f"whisker {css}")
        )
        if len(report.seeds) > 1:
            shapes += [
                Dot(plane.x(x), plane.y(run.value), 2.2, f"dot {css}", f"seed {run.seed}: {_figure(report, run.value)}")
                for run in one.seeds
                if run.value is not None
            ]
        shapes.append(Dot(plane.x(x), plane.y(one.mean.value), 5, f"dot {css}", f"{one.name}: {_told(report, one)}"))
    return shapes


def _colour(number: int) -> str:
    """The class of a line by its number."""
    return f"series-{1 + number % COLOURS}"


def _ticks(plane: Plane, places: dict[float, float]) -> list[tuple[float, str]]:
    """The values themselves, less those whose labels would run into the one before."""
    ticks, last = list[tuple[float, str]](), -math.inf
    for value, place in places.items():
        if plane.x(place) - last >= TICK_ROOM:
            ticks.append((place, value_text(value)))
            last = plane.x(place)
    return ticks


def _place(value: float, *, is_log: bool) -> float:
    return math.log10(value) if is_log else value


def _figure(report: SweepReport, value: float) -> str:
    return percent(value) if report.share else short(value)


def _told(report: SweepReport, one: VariantReport) -> str:
    if one.mean is None:
        return one.note
    low, value, high = (_figure(report, part) for part in (one.mean.low, one.mean.value, one.mean.high))
    return f"{value} ({low} to {high})"


def lead_words(report: SweepReport, lead: Difference) -> tuple[str, str]:
    """A lead and its interval, in points of a hundred where the figure is a share."""
    scale, unit = (100.0, " points") if report.share else (1.0, "")
    value, low, high = (short(scale * part) for part in (lead.value, lead.low, lead.high))
    return f"{value}{unit}", f"{low} to {high}"
