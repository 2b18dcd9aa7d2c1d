"""Plots of what a policy gained against how far it went from where it started."""

import math
from collections.abc import Sequence
from itertools import pairwise

from alignment.report.run_report import Interval, OveroptimisationReport, TournamentReport, Way
from alignment.report.svg import WIDTH, Dot, Label, Path, Plane, Shape, SvgFigure, nice_ticks, padded
from alignment.report.words import percent, percent_range, short

SERIES = 6  # colours that the style sheet has


def way_plot(found: OveroptimisationReport) -> SvgFigure:
    """True reward (strong, with intervals) and proxy (thin, dashed) of every policy against √KL, in one plane."""
    reach = [0.0] + [
        value for way in found.ways.values() for point in way.points
        for value in (point.proxy.value, *_ends(point.true))
    ]  # fmt: skip
    farthest = max((math.sqrt(point.kl) for way in found.ways.values() for point in way.points), default=1.0)
    rows = len(found.ways)
    plane = Plane((0, farthest * 1.04 or 1.0), padded(reach), left=42, right=2 * WIDTH - 20, bottom=300)
    shapes = plane.axes(
        "√KL from the start (nats an answer)", "reward (deviations of the start)",
        nice_ticks(*plane.x_range), nice_ticks(*plane.y_range),
    )  # fmt: skip
    shapes.append(Path(f"M{plane.left} {plane.y(0):.1f}H{plane.right}", "reference"))
    for number, (name, way) in enumerate(found.ways.items()):
        shapes += _way(plane, name, way, number % SERIES)
    for number, (name, way) in enumerate(found.ways.items()):
        y = 356.0 + 19 * number
        shapes.append(Path(f"M{plane.left} {y - 4:.1f}h22", f"line series-{number % SERIES}"))
        shapes.append(Label(plane.left + 30, y, f"{name}: {way.words}", "row-label"))
    return SvgFigure(
        title="True and proxy reward against distance",
        alternative=" ".join(_sentence(name, way) for name, way in found.ways.items()),
        width=2 * WIDTH,
        height=356.0 + 19 * rows,
        shapes=tuple(shapes),
        caption="Strong: what is really wanted, with 95\u202f% intervals. Dashed: the reward model it was trained on.",
    )


def _way(plane: Plane, name: str, way: Way, series: int) -> list[Shape]:
    css = f"series-{series}"
    points = sorted(way.points, key=lambda point: point.kl)
    along = [math.sqrt(point.kl) for point in points]
    shapes: list[Shape] = []
    for values, kind in (([p.proxy.value for p in points], "proxy"), ([p.true.value for p in points], "line")):
        whole = list(zip(along, values, strict=True))
        if along and along[0] > 0:
            whole = [(0.0, 0.0), *whole]
        shapes.append(plane.line(whole, f"{kind} {css}"))
    for x, point in zip(along, points, strict=True):
        low, high = _ends(point.true)
        shapes.append(Path(f"M{plane.x(x):.1f} {plane.y(low):.1f}V{plane.y(high):.1f}", f"whisker {css}"))
        tip = f"{name} at {point.step}: true {short(point.true.value)}, proxy {short(point.proxy.value)}"
        shapes.append(Dot(plane.x(x), plane.y(point.true.value), 3.5, f"dot {css}", tip))
    return shapes


def _sentence(name: str, way: Way) -> str:
    return (
        f"{name}: the true reward {way.words}; its best is {short(way.rise.value)} deviations above the start, at a KL "
        f"of {short(way.best_kl)}; from there to the end {short(way.fall.value)}."
    )


def tournament_plot(found: TournamentReport) -> SvgFigure:
    """Win rate against the start, by KL from it: what each player gained, and what it paid."""
    players = [one for one in found.standings if one.rate is not None]
    farthest = max((one.kl for one in players), default=1.0) or 1.0
    plane = Plane((0, farthest * 1.12), (0, 1), left=50, bottom=246)
    ticks = [(value / 100, f"{value} %") for value in (0, 25, 50, 75, 100)]
    shapes = plane.axes(
        "KL from the start (nats an answer)", "wins against the start", nice_ticks(*plane.x_range), ticks
    )
    shapes.append(Path(f"M{plane.left} {plane.y(0.5):.1f}H{plane.right}", "reference"))
    labels = _spread([plane.y(one.rate.value) for one in players if one.rate])
    for one, y in zip(players, labels, strict=True):
        assert one.rate is not None
        low, high = _ends(one.rate)
        css = "good" if low > 0.5 else "bad" if high < 0.5 else "open"
        x = plane.x(one.kl)
        shapes.append(Path(f"M{x:.1f} {plane.y(low):.1f}V{plane.y(high):.1f}", "whisker"))
        tip = f"{one.player}: {percent(one.rate.value)} ({percent_range(low, high)})"
        shapes.append(Dot(x, plane.y(one.rate.value), 5.5, f"mark {css}", tip))
        right = x < plane.right - 90
        shapes.append(Label(x + (9 if right else -9), y + 4, one.player, "row-label", "start" if right else "end"))
    words = "; ".join(f"{one.player} {percent(one.rate.value)} at {short(one.kl)} nats" for one in players if one.rate)
    return SvgFigure(
        title=f"Win rate against {found.start}, by KL",
        alternative=f"Win rates against {found.start} on {found.prompts} held-out prompts: {words}.",
        width=WIDTH,
        height=290,
        shapes=tuple(shapes),
        caption="Upright lines: 95\u202f% intervals. The KL of best-of-n is an upper bound.",
    )


def _ends(interval: Interval) -> tuple[float, float]:
    value = interval.value
    return (value if interval.low is None else interval.low), (value if interval.high is None else interval.high)


def _spread(places: Sequence[float], least: float = 14.0) -> list[float]:
    """Places for labels: near what they name, and never over one another."""
    result = list(places)
    order = sorted(range(len(places)), key=lambda i: places[i])
    for before, after in pairwise(order):
        result[after] = max(result[after], result[before] + least)
    return result
