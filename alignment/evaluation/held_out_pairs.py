"""What a model that scores answers is worth on held-out preference pairs: accuracy, calibration, each pair's margin."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from alignment.digests import content_id
from alignment.evaluation.calibration import (
    calibration_error,
    expected_calibration_error,
    fit_temperature,
    pair_accuracy,
    pair_predictions,
    reliability,
)
from alignment.evaluation.slices import accuracy_slices
from alignment.records import PreferencePair


@dataclass(frozen=True, slots=True)
class HeldOutFigures:
    """``metrics`` of a model on held-out pairs, and the ``detail`` of each pair for the report."""

    metrics: Mapping[str, float]
    detail: Mapping[str, Any]


def reward_figures(
    pairs: Sequence[PreferencePair], chosen: Sequence[float], rejected: Sequence[float], *, calibrate: bool = False
) -> HeldOutFigures:
    """Figures of a reward model from its scores of each pair's answers.

    With ``calibrate`` they are those of the scores over a temperature that is fitted on these pairs, the metric
    ``temperature``; calibration is then measured with temperatures fitted on the other half of the prompts.
    """
    raw = [c - r for c, r in zip(chosen, rejected, strict=True)]
    prompts = [pair.prompt_id for pair in pairs]
    accuracy = pair_accuracy(chosen, rejected, clusters=prompts)
    temperature = _temperature(raw) if calibrate else 1.0
    margins = [margin / temperature for margin in raw]
    judged = _cross_fitted(raw, prompts) if calibrate else margins
    probabilities, outcomes = both_orders(judged)
    predictions = pair_predictions(judged, [0.0] * len(judged))
    error = calibration_error(*(prediction.tolist() for prediction in predictions), clusters=prompts)
    metrics = {
        "accuracy": accuracy.value,
        "accuracy.low": accuracy.low,
        "accuracy.high": accuracy.high,
        "margin.mean": sum(margins) / len(margins),
        "ece": expected_calibration_error(probabilities, outcomes),
        "ece.debiased": error.value,
        "ece.low": error.low,
        "ece.high": error.high,
        "held_out_pairs": float(len(margins)),
    }
    slices = [of_slice.model_dump(mode="json") for of_slice in accuracy_slices(pairs, margins)]
    scores = {"chosen": [c / temperature for c in chosen], "rejected": [r / temperature for r in rejected]}
    detail = {"margins": margins, **scores, "reliability": reliability(probabilities, outcomes), "slices": slices}
    return HeldOutFigures(metrics | ({"temperature": temperature} if calibrate else {}), detail)


def _temperature(margins: Sequence[float]) -> float:
    """What makes margins log-odds; with the targets of Platt (1999), so that few pairs claim no certainty."""
    target = (len(margins) + 1) / (len(margins) + 2)
    return fit_temperature(margins, [target] * len(margins))


def _cross_fitted(margins: Sequence[float], prompts: Sequence[str]) -> list[float]:
    """Each margin over the temperature of the pairs whose prompts are in the other half."""
    halves = [int(content_id(["half", prompt]), 16) % 2 for prompt in prompts]
    others = [_temperature([m for m, place in zip(margins, halves, strict=True) if place != half]) for half in (0, 1)]
    return [margin / others[half] for margin, half in zip(margins, halves, strict=True)]


def classifier_figures(
    pairs: Sequence[PreferencePair], chosen_first: Sequence[float], chosen_last: Sequence[float], *, consistency: float
) -> HeldOutFigures:
    """Figures of a pair classifier from its log-odds for the chosen answer, shown first and shown last.

    ``consistency`` is the share of pairs whose verdict does not depend on the order.
    """
    margins = [(first + last) / 2 for first, last in zip(chosen_first, chosen_last, strict=True)]
    accuracy = pair_accuracy(margins, [0.0] * len(margins), clusters=[pair.prompt_id for pair in pairs])
    probabilities, outcomes = both_orders(margins)
    metrics = {
        "accuracy": accuracy.value,
        "accuracy.low": accuracy.low,
        "accuracy.high": accuracy.high,
        "position_consistency": consistency,
        "ece": expected_calibration_error(probabilities, outcomes),
        "held_out_pairs": float(len(margins)),
    }
    detail = {"first": list(chosen_first), "last": list(chosen_last), "margins": margins,
              "reliability": reliability(probabilities, outcomes)}  # fmt: skip
    return HeldOutFigures(metrics, detail)


def both_orders(margins: Sequence[float]) -> tuple[list[float], list[int]]:
    """P(left wins) and P(right wins) of every pair, and what happened: a pair's order carries no information."""
    probabilities = torch.sigmoid(torch.tensor(margins, dtype=torch.float64))
    both = [*probabilities.tolist(), *(1 - probabilities).tolist()]
    return both, [1] * len(margins) + [0] * len(margins)
