"""A training stage's curves, ``{metric: [(step, value), …]}``, and the figures that are quoted from them."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from alignment.durable_files import write_text

Curves = dict[str, list[tuple[int, float]]]
UNINTERESTING = {"epoch", "num_tokens", "total_flos", "train_runtime", "train_samples_per_second"}


def is_curve(name: str) -> bool:
    """Whether a figure in a transformers trainer's log is one of the stage's metrics."""
    return name not in UNINTERESTING and name != "step" and not name.startswith("train_")


def curves_of_log(log: Iterable[Mapping[str, float]]) -> Curves:
    """The curves in a transformers trainer's log history."""
    return curves_of_steps((int(row["step"]), {k: float(v) for k, v in row.items() if is_curve(k)}) for row in log)


def curves_of_steps(steps: Iterable[tuple[int, Mapping[str, float]]]) -> Curves:
    """Curves from each step's metrics, in the order in which metrics first appear."""
    curves: Curves = {}
    for step, metrics in steps:
        for name, value in metrics.items():
            curves.setdefault(name, []).append((step, value))
    return curves


def final_metrics(curves: Curves) -> dict[str, float]:
    """The mean of each metric over the last tenth of the steps (at least one): one step alone is too noisy to quote.

    A metric that none of these steps has, as one that is not measured at every step, is quoted from its last point.
    """
    steps = sorted({step for curve in curves.values() for step, _value in curve})
    recent = set(steps[-max(1, len(steps) // 10) :])
    metrics = {}
    for name, curve in curves.items():
        values = [value for step, value in curve if step in recent] or [curve[-1][1]]
        metrics[name] = sum(values) / len(values)
    return metrics


def write_curves(curves: Curves, output: Path) -> None:
    """Writes ``curves.json`` into a stage's output."""
    write_text(output / "curves.json", json.dumps(curves, sort_keys=True))
