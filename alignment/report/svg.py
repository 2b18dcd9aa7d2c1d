"""The few shapes that the report's figures are made of, and the scales that place them.

A figure is data: shapes with a class each, in a box of fixed size. ``figure.svg.j2`` writes it, and the page's style
sheet gives the classes their colours, so that a figure follows the page from light to dark.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH = 360.0  # of a figure, in CSS pixels: a phone's width, so that text keeps its size everywhere


@dataclass(frozen=True, slots=True)
class Path:
    """A line or an outline, by its SVG path data."""

    d: str
    css: str
    tag: str = "path"


@dataclass(frozen=True, slots=True)
class Rect:
    """A rectangle; ``tip`` shows when it is pointed at."""

    x: float
    y: float
    width: float
    height: float
    css: str
    tip: str = ""
    radius: float = 0.0
    tag: str = "rect"


@dataclass(frozen=True, slots=True)
class Dot:
    """A filled circle."""

    x: float
    y: float
    radius: float
    css: str
    tip: str = ""
    tag: str = "circle"


@dataclass(frozen=True, slots=True)
class Label:
    """A line of text, placed by its baseline; ``anchor`` is start, middle or end."""

    x: float
    y: float
    text: str
    css: str = "tick"
    anchor: str = "start"
    tag: str = "text"


Shape = Path | Rect | Dot | Label


@dataclass(frozen=True, slots=True)
class SvgFigure:
    """A finished figure. ``alternative`` says in words what it shows."""

    title: str
    alternative: str
    width: float
    height: float
    shapes: tuple[Shape, ...]
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Plane:
    """A rectangle of a figure that stands for a range of values; y grows upwards in values, downwards in pixels."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    left: float = 42.0
    right: float = WIDTH - 20.0
    top: float = 30.0
    bottom: float = 186.0

    def x(self, value: float) -> float:
        """A value's place, in pixels from the left."""
        return _place(value, self.x_range, self.left, self.right)

    def y(self, value: float) -> float:
        """A value's place, in pixels from the top."""
        return _place(value, self.y_range, self.bottom, self.top)

    def line(self, points: Sequence[tuple[float, float]], css: str) -> Path:
        """A line through values."""
        return Path("M" + "L".join(f"{self.x(x):.1f} {self.y(y):.1f}" for x, y in points), css)

    def axes(
        self, x_label: str, y_label: str, x_ticks: Sequence[tuple[float, str]], y_ticks: Sequence[tuple[float, str]]
    ) -> list[Shape]:
        """Grid lines, tick labels and axis labels; the y axis is named above it, where it reads without turning."""
        shapes: list[Shape] = []
        for value, text in y_ticks:
            y = self.y(value)
            shapes.append(Path(f"M{self.left:.1f} {y:.1f}H{self.right:.1f}", "grid"))
            shapes.append(Label(self.left - 7, y + 4, text, anchor="end"))
        for value, text in x_ticks:
            x = self.x(value)
            shapes.append(Path(f"M{x:.1f} {self.bottom:.1f}v4", "axis"))
            shapes.append(Label(x, self.bottom + 17, text, anchor="middle"))
        shapes.append(Path(f"M{self.left:.1f} {self.bottom:.1f}H{self.right:.1f}", "axis"))
        shapes.append(Label((self.left + self.right) / 2, self.bottom + 36, x_label, "axis-label", "middle"))
        if y_label:
            shapes.append(Label(2, self.top - 15, y_label, "axis-label"))
        return shapes


def nice_ticks(low: float, high: float, count: int = 5) -> list[tuple[float, str]]:
    """About ``count`` round values (1, 2 or 5 times a power of ten) within a range, with their labels."""
    if not high > low:
        return [(low, f"{low:.3g}")]
    power = 10.0 ** math.floor(math.log10((high - low) / count))
    step = min((factor * power for factor in (1, 2, 5, 10)), key=lambda step: abs((high - low) / step + 1 - count))
    places = max(0, -math.floor(math.log10(step)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [(i * step, f"{i * step:,.{places}f}".replace("-", "−")) for i in range(first, last + 1)]


def padded(values: Sequence[float], share: float = 0.08) -> tuple[float, float]:
    """The values' range with a little room on both sides; never empty."""
    low, high = min(values), max(values)
    room = (high - low) * share or max(abs(high) * share, 0.5)
    return low - room, high + room


def histogram(values: Sequence[float], low: float, high: float, bins: int) -> list[int]:
    """How many values lie in each of ``bins`` equal parts of [low, high]; what lies outside counts at the ends."""
    counts = [0] * bins
    for value in values:
        index = int((value - low) / (high - low) * bins)
        counts[min(max(index, 0), bins - 1)] += 1
    return counts


def _place(value: float, span: tuple[float, float], begin: float, end: float) -> float:
    return begin + (value - span[0]) / (span[1] - span[0]) * (end - begin)
