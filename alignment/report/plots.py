"""The report's plots: each a function from its part of the report to a :class:`SvgFigure`."""

import math
from collections.abc import Mapping, Sequence
from statistics import median

from alignment.report.run_report import Curve, EvaluationReport, Interval, RewardReport, Tally, WinRateReport
from alignment.report.svg import WIDTH, Dot, Label, Path, Plane, Rect, Shape, SvgFigure, histogram, nice_ticks, padded
from alignment.report.words import model_words, percent, percent_range

PERCENT_TICKS = [(value / 100, f"{value} %") for value in (0, 25, 50, 75, 100)]
HEIGHT = 230.0
INDIFFERENCE = math.log(2)  # −log σ(0): the loss of a pairwise model that prefers neither answer
BINS = 24


def loss_curve(stage: str, curve: Curve, *, pairwise: bool) -> SvgFigure:
    """A training stage's loss by optimizer step: each step faint, their running mean strong.

    ``pairwise`` marks log 2, where a loss on pairs starts.
    """
    steps, losses = [step for step, _loss in curve], [loss for _step, loss in curve]
    smooth = _running_mean(losses)
    reach = [*losses, INDIFFERENCE] if pairwise else losses
    plane = Plane((min(steps) - 0.001, max(steps)), padded(reach))
    shapes = plane.axes("optimizer step", "loss (nats)", nice_ticks(*plane.x_range), nice_ticks(*plane.y_range))
    if pairwise:
        y = plane.y(INDIFFERENCE)
        shapes.append(Path(f"M{plane.left} {y:.1f}H{plane.right}", "reference"))
    shapes.append(plane.line(list(zip(steps, losses, strict=True)), "faint"))
    shapes.append(plane.line(list(zip(steps, smooth, strict=True)), "line"))
    shapes.append(Dot(plane.x(steps[-1]), plane.y(smooth[-1]), 3.5, "dot", f"{smooth[-1]:.4g}"))
    if pairwise:
        shapes.append(Label(plane.right, plane.y(INDIFFERENCE) - 5, "no preference: log 2", "note", "end"))
    return SvgFigure(
        title=f"Loss of {stage}",
        alternative=f"Loss of {stage}: from {smooth[0]:.3g} to {smooth[-1]:.3g} in {steps[-1]} optimizer steps.",
        width=WIDTH,
        height=HEIGHT,
        shapes=tuple(shapes),
        caption=f"From {losses[0]:.3f} to {smooth[-1]:.3f}; thin: each step, thick: running mean.",
    )


def step_curve(stage: str, what: str, curve: Curve) -> SvgFigure:
    """A figure of a policy in training, ``what`` in words, by step: each step faint, their running mean strong."""
    steps, values = [step for step, _value in curve], [value for _step, value in curve]
    smooth, name = _running_mean(values), what.partition(" (")[0]
    plane = Plane((min(steps) - 0.001, max(steps)), padded(values))
    shapes = plane.axes("step", what, nice_ticks(*plane.x_range), nice_ticks(*plane.y_range))
    shapes.append(plane.line(list(zip(steps, values, strict=True)), "faint"))
    shapes.append(plane.line(list(zip(steps, smooth, strict=True)), "line"))
    shapes.append(Dot(plane.x(steps[-1]), plane.y(smooth[-1]), 3.5, "dot", f"{smooth[-1]:.4g}"))
    return SvgFigure(
        title=f"{name[0].upper()}{name[1:]} of {stage}",
        alternative=f"{what} of {stage}: from {smooth[0]:.3g} to {smooth[-1]:.3g} in {steps[-1]} steps.",
        width=WIDTH,
        height=HEIGHT,
        shapes=tuple(shapes),
        caption=f"From {values[0]:.3f} to {smooth[-1]:.3f}; thin: each step, thick: running mean.",
    )


def verdict_strip(rate: WinRateReport, prompts: int) -> SvgFigure:
    """The one win rate that the verdict quotes, large."""
    plane = Plane((0, 1), (0, 1), left=8, right=312, top=10, bottom=62)
    css = "good" if rate.low > 0.5 else "bad" if rate.high < 0.5 else "open"
    left, right, middle = plane.x(rate.low), plane.x(rate.high), plane.x(rate.value)
    right_half, whom = rate.value > 0.5, f"wins against {rate.opponent}"
    shapes: list[Shape] = [
        Rect(plane.left, 41, plane.right - plane.left, 6, "track", radius=3),
        Path(f"M{plane.x(0.5):.1f} 32V56", "reference"),
        Rect(left, 40, max(right - left, 1), 8, f"interval {css}", radius=4),
        Dot(middle, 44, 8, f"mark {css}"),
        Label(min(max(middle, 26), 294), 22, percent(rate.value), "hero-value", "middle"),
        Label(plane.left if right_half else plane.right, 22, whom, anchor="start" if right_half else "end"),
        Label(plane.left, 74, "never"),
        Label(plane.x(0.5), 74, "as often as not", anchor="middle"),
        Label(plane.right, 74, "always", anchor="end"),
    ]
    words = f"{percent(rate.value)}, interval {percent(rate.low)} to {percent(rate.high)}, {prompts} prompts"
    return SvgFigure(f"Wins against {rate.opponent}", f"Wins against {rate.opponent}: {words}.", 320, 80, tuple(shapes))


def win_rate_plot(rates: Sequence[WinRateReport], candidate: str, prompts: int) -> SvgFigure:
    """Win rates with their intervals, one row for each opponent and judge, against the 50 % line."""
    row_height, top = 46.0, 30.0
    bottom = top + row_height * len(rates)
    plane = Plane((0, 1), (0, 1), left=18, right=WIDTH - 20, top=top, bottom=bottom)
    shapes = plane.axes(f"prompts that {candidate} wins (ties half)", "", PERCENT_TICKS, [])
    for value, _text in PERCENT_TICKS:
        css = "reference" if value == 0.5 else "grid"
        shapes.insert(0, Path(f"M{plane.x(value):.1f} {top - 6:.1f}V{bottom:.1f}", css))
    shapes.append(Label(plane.x(0.5), top - 12, "as often as not", "note", "middle"))
    for i, rate in enumerate(rates):
        y = top + row_height * i + 30
        css = "good" if rate.low > 0.5 else "bad" if rate.high < 0.5 else "open"
        tip = f"{percent(rate.value)} ({percent_range(rate.low, rate.high)})"
        shapes.append(
            Label(
                plane.left, y - 14, f"against {rate.opponent} · {short_judge(rate.judge, rate.judged_by)}", "row-label"
            )
        )
        shapes.append(Label(plane.right, y - 14, tip, "value", "end"))
        shapes.append(Rect(plane.left, y - 2, plane.right - plane.left, 4, "track", radius=2))
        left, right = plane.x(rate.low), plane.x(rate.high)
        shapes.append(Rect(left, y - 3, max(right - left, 1), 6, f"interval {css}", tip, radius=3))
        if (equal := rate.length_controlled) is not None:
            tip_equal = length_words(equal)
            if equal.low is not None and equal.high is not None:
                begin, end = plane.x(equal.low), plane.x(equal.high)
                shapes.append(Rect(begin, y + 5, max(end - begin, 1), 2, f"interval {css}", tip_equal, radius=1))
            shapes.append(Dot(plane.x(equal.value), y, 4.5, "ring", tip_equal))
        shapes.append(Dot(plane.x(rate.value), y, 5.5, f"mark {css}", tip))
    words = "; ".join(
        f"against {r.opponent} by {r.judged_by} {percent(r.value)}, {percent(r.low)} to {percent(r.high)}"
        + (f", {length_words(r.length_controlled)}" if r.length_controlled else "")
        for r in rates
    )
    return SvgFigure(
        title="Win rates with 95 % intervals",
        alternative=f"Win rates of {candidate} on {prompts} prompts: {words}.",
        width=WIDTH,
        height=bottom + 44,
        shapes=tuple(shapes),
        caption="An interval right of the line: wins more often than not. Ring and thin line: the same if answers were "
        "equally long.",
    )


def length_words(rate: Interval) -> str:
    """A length-controlled win rate with its interval, in words."""
    ends = "" if rate.low is None or rate.high is None else f" ({percent_range(rate.low, rate.high)})"
    return f"{percent(rate.value)}{ends} if answers were equally long"


def margin_plot(reward: RewardReport) -> SvgFigure:
    """A reward model's accuracy with its interval, and how far apart it puts the answers of held-out pairs."""
    reach = max([1e-6, *(abs(margin) for margin in reward.margins)])
    bins = BINS if len(reward.margins) >= 60 else BINS // 2
    counts = histogram(reward.margins, -reach, reach, bins)
    plane = Plane((-reach, reach), (0, max(counts) * 1.08), top=104, bottom=246)
    shapes = plane.axes(
        "chosen − rejected (reward units)", "pairs", nice_ticks(-reach, reach), nice_ticks(0, max(counts), 4)
    )
    step = 2 * reach / bins
    for i, count in enumerate(counts):
        low = -reach + i * step
        x, y = plane.x(low), plane.y(count)
        css = "good" if low + step / 2 > 0 else "bad"
        tip = f"{count} pairs from {low:.2g} to {low + step:.2g}"
        width = plane.x(low + step) - x - 1.5
        shapes.append(Rect(x + 0.75, y, width, plane.bottom - y, f"bar {css}", tip, radius=1))
    x = plane.x(0)
    shapes.append(Path(f"M{x:.1f} {plane.top - 6}V{plane.bottom}", "reference"))
    shapes += _accuracy_strip(reward)
    wrong = sum(margin < 0 for margin in reward.margins)
    right = f"{percent(reward.accuracy)} of {len(reward.margins)} held-out pairs"
    interval = f"95\u202f% interval {percent_range(reward.low, reward.high)}"
    return SvgFigure(
        title=f"Accuracy and margins of {reward.stage}",
        alternative=f"The reward model orders {right} right, {interval}; {wrong} are in the wrong order.",
        width=WIDTH,
        height=290,
        shapes=tuple(shapes),
        caption=f"Orders {right} as the raters did. Red, left of zero: the other way round.",
    )


def _accuracy_strip(reward: RewardReport) -> list[Shape]:
    plane = Plane((0, 1), (0, 1))
    css = "good" if reward.low > 0.5 else "bad" if reward.high < 0.5 else "open"
    left, right = plane.x(reward.low), plane.x(reward.high)
    value = f"{percent(reward.accuracy)} ({percent_range(reward.low, reward.high)})"
    return [
        Label(plane.left, 22, "pairs in the right order", "row-label"),
        Label(plane.right, 22, value, "value", "end"),
        Rect(plane.left, 35, plane.right - plane.left, 4, "track", radius=2),
        Path(f"M{plane.x(0.5):.1f} 29V45", "reference"),
        Rect(left, 34, max(right - left, 1), 6, f"interval {css}", radius=3),
        Dot(plane.x(reward.accuracy), 37, 5.5, f"mark {css}"),
        Label(plane.x(0.5), 59, "chance", "note", "middle"),
    ]


def calibration_plot(reward: RewardReport) -> SvgFigure:
    """Whether a reward model's probabilities mean what they say."""
    plane = Plane((0, 1), (0, 1), left=50, bottom=246)
    shapes = plane.axes("predicted that it is preferred", "was preferred", PERCENT_TICKS, PERCENT_TICKS)
    shapes.append(plane.line([(0, 0), (1, 1)], "reference"))
    shapes.append(Label(plane.x(0.73), plane.y(0.64), "calibrated", "note"))
    most = max((row.n for row in reward.reliability), default=1)
    rows = sorted(reward.reliability, key=lambda row: row.confidence)
    if len(rows) > 1:
        shapes.append(plane.line([(row.confidence, row.accuracy) for row in rows], "faint"))
    for row in rows:
        tip = f"{row.n} predictions of about {percent(row.confidence)}: {percent(row.accuracy)} came true"
        shapes.append(
            Dot(plane.x(row.confidence), plane.y(row.accuracy), 2.5 + 5 * math.sqrt(row.n / most), "bubble", tip)
        )
    words = "; ".join(f"of {row.n} at {percent(row.confidence)}, {percent(row.accuracy)}" for row in rows)
    return SvgFigure(
        title=f"Calibration of {reward.stage}",
        alternative=f"Predicted against observed preference: {words}.",
        width=WIDTH,
        height=290,
        shapes=tuple(shapes),
        caption=f"Each answer of each held-out pair by prediction; a larger dot holds more.{_error_words(reward)}",
    )


def _error_words(reward: RewardReport) -> str:
    if reward.ece is None:
        return ""
    ends = (
        "" if reward.ece.low is None or reward.ece.high is None else f", {reward.ece.low:.3f} to {reward.ece.high:.3f}"
    )
    return f" Calibration error {reward.ece.value:.3f}{ends}, the bias of few pairs taken off."


def length_plot(evaluation: EvaluationReport) -> SvgFigure:
    """How long each model's answers are: one histogram below the other, on one axis."""
    order = sorted(evaluation.lengths, key=lambda model: (model == evaluation.candidate, model != "base"))
    lengths = {model: evaluation.lengths[model] for model in order if evaluation.lengths[model]}
    longest = max(max(values) for values in lengths.values())
    row_height, top = 64.0, 6.0
    bottom = top + row_height * len(lengths)
    plane = Plane((0, longest * 1.02 + 1), (0, 1), left=18, right=WIDTH - 20, top=top, bottom=bottom)
    shapes = plane.axes("tokens in an answer", "", nice_ticks(*plane.x_range), [])
    step = plane.x_range[1] / BINS
    for i, (model, values) in enumerate(lengths.items()):
        floor = top + row_height * (i + 1)
        counts = histogram(values, *plane.x_range, BINS)
        scale = (row_height - 30) / max(counts)
        for j, count in enumerate(counts):
            if count:
                x, tip = plane.x(j * step), f"{count} answers of {j * step:.0f} to {(j + 1) * step:.0f} tokens"
                width = plane.x((j + 1) * step) - x - 1
                css = f"bar model-{model_class(evaluation, model)}"
                shapes.append(Rect(x, floor - count * scale, width, count * scale, css, tip, radius=1))
        middle = median(values)
        shapes.append(Path(f"M{plane.left} {floor:.1f}H{plane.right}", "grid"))
        text = f"{model_words(model, evaluation.candidate)} · median {middle:g}"
        shapes.append(Label(plane.left, floor - row_height + 22, text, "row-label"))
        x = plane.x(middle)
        shapes.append(Path(f"M{x:.1f} {floor - row_height + 28:.1f}V{floor:.1f}", "median"))
    words = "; ".join(f"{model}: median {median(values):g} tokens" for model, values in lengths.items())
    return SvgFigure(
        title="Length of the answers",
        alternative=f"Distributions of answer length on the prompts asked. {words}.",
        width=WIDTH,
        height=bottom + 44,
        shapes=tuple(shapes),
        caption="The upright line is the median.",
    )


def kinds_plot(
    tallies: Mapping[str, Tally], candidate: str, opponent: str, judge: str, judged_by: str = ""
) -> SvgFigure:
    """Wins, ties and losses for each kind of prompt."""
    row_height, top = 30.0, 14.0
    bottom = top + row_height * len(tallies)
    plane = Plane((0, 1), (0, 1), left=18, right=WIDTH - 20, top=top, bottom=bottom)
    shapes: list[Shape] = plane.axes("share of the prompts of this kind", "", PERCENT_TICKS, [])
    for i, (kind, tally) in enumerate(tallies.items()):
        y, total = top + row_height * i, tally.win + tally.tie + tally.loss
        shapes.append(Label(plane.left, y + 10, kind.replace("_", " "), "row-label"))
        count = f"{tally.win} won · {tally.tie} tied · {tally.loss} lost"
        shapes.append(Label(plane.right, y + 10, count, "value", "end"))
        begin = 0.0
        for css, part in (("good", tally.win), ("open", tally.tie), ("bad", tally.loss)):
            width = part / total * (plane.right - plane.left)
            if part:
                shapes.append(Rect(plane.left + begin, y + 15, width - 1, 7, f"bar {css}", f"{part} of {total}", 1))
            begin += width
    words = "; ".join(f"{kind} {t.win} won, {t.tie} tied, {t.loss} lost" for kind, t in tallies.items())
    return SvgFigure(
        title=f"By kind of prompt, against {opponent}",
        alternative=f"{candidate} against {opponent} by kind of prompt: {words}.",
        width=WIDTH,
        height=bottom + 44,
        shapes=tuple(shapes),
        caption=f"Judged by {short_judge(judge, judged_by)}.",
    )


def short_judge(judge: str, judged_by: str = "") -> str:
    """A judge in two words; simulated raters are called simulated, and an AI judge uncalibrated where it is."""
    names = {"rubric": "simulated raters", "reward": "reward model", "judge": "AI judge"}
    return names.get(judge, judge) + (", uncalibrated" if "uncalibrated" in judged_by else "")


def model_class(evaluation: EvaluationReport, model: str) -> str:
    """The class that gives a model its colour: candidate, base or other."""
    return "candidate" if model == evaluation.candidate else "base" if model == "base" else "other"


def _running_mean(values: Sequence[float]) -> list[float]:
    """Each value's mean with those around it: a window of a tenth of the curve."""
    half = max(1, len(values) // 20)
    windows = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]
