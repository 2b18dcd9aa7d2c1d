"""What an evaluation left behind, as the report shows it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignment.recipe.graph import of_type
from alignment.recipe.recipe import Recipe
from alignment.recipe.stages.evaluate import EvaluateStage
from alignment.records import Artifact
from alignment.report.run_report import (
    EvaluationReport,
    FigureReport,
    Interval,
    SliceReport,
    SystemReport,
    Tally,
    WinRateReport,
)

MODEL_FIGURES = (
    "length", "words", "repetition", "distinct_2", "finished", "bleu", "rouge_l", "exact_match", "number_match"
)  # fmt: skip


def evaluated(recipe: Recipe, artifacts: Mapping[str, Artifact]) -> tuple[str, EvaluationReport] | None:
    """The evaluation that the gate looks at, else the last one; with its stage's name."""
    names = [name for name, _stage in of_type(recipe.stages, EvaluateStage) if name in artifacts]
    if not names:
        return None
    name = recipe.gate.evaluation if recipe.gate and recipe.gate.evaluation in names else names[-1]
    found = json.loads((Path(artifacts[name].path) / "evaluation.json").read_text("utf-8"))
    rates = found["win_rates"]
    first = rates[0] if rates else None
    judge = first["judge"] if first else None
    return name, EvaluationReport(
        candidate=found["candidate"],
        prompts=found["prompts"],
        prompts_file=_own_file(recipe, name),
        trained=dict(of_type(recipe.stages, EvaluateStage))[name].split == "train",
        win_rates=tuple(_win_rate(rate, found["judges"]) for rate in rates),
        kl=Interval(**{part: found["kl"][part] for part in ("value", "low", "high")}),
        reference=found["reference"],
        models={model: _model_figures(figures) for model, figures in found["models"].items()},
        lengths={model: tuple(figures["lengths"]) for model, figures in found["models"].items()},
        opponent=first["opponent"] if first else None,
        judge=judge,
        by_kind={kind: _tally(rate) for kind, rate in first["kinds"].items()} if first else {},
        metrics={model: _figures(table) for model, table in found["metrics"].items()},
        leads={opponent: _figures(table) for opponent, table in found["metric_leads"].items()},
        better=found["better"],
        signatures=found["signatures"],
        slices=tuple(_slice(part, found["candidate"], judge) for part in found["slices"]),
        system=SystemReport(
            sampling=found["sampling"],
            templates=found["templates"],
            prompts=tuple((one["text"], one["n"]) for one in found["system_prompts"]),
        ),
    )


def _own_file(recipe: Recipe, name: str) -> str | None:
    """The name of the file that the evaluation's prompts have to themselves."""
    asks = recipe.stages[name].asks_held_out() and recipe.data.held_out_prompts is not None
    return Path(recipe.data.held_out_prompts or "").name if asks else None


def accuracy_slices(told: list[Mapping[str, Any]]) -> tuple[SliceReport, ...]:
    """A reward model's accuracy by slice, as it stands beside its held-out pairs."""
    return tuple(
        SliceReport(by=one["by"], value=one["value"], n=one["n"], win_rates={}, leads={},
                    metrics={"accuracy": _figure(one["accuracy"])})
        for one in told
    )  # fmt: skip


def _slice(told: Mapping[str, Any], candidate: str, judge: str | None) -> SliceReport:
    return SliceReport(
        by=told["by"],
        value=told["value"],
        n=told["n"],
        win_rates={opponent: _figure(rates[judge]) for opponent, rates in told["win_rates"].items() if judge in rates},
        metrics=_figures(told["metrics"].get(candidate, {})),
        leads={opponent: _figures(table) for opponent, table in told["leads"].items()},
    )


def _figures(table: Mapping[str, Any]) -> dict[str, FigureReport]:
    return {name: _figure(one) for name, one in table.items()}


def _figure(told: Mapping[str, Any]) -> FigureReport:
    return FigureReport(**{part: told[part] for part in FigureReport.model_fields})


def _win_rate(found: Mapping[str, Any], judges: Mapping[str, str]) -> WinRateReport:
    rate = found["rate"]
    return WinRateReport(
        opponent=found["opponent"],
        judge=found["judge"],
        judged_by=judges[found["judge"]],
        value=rate["value"],
        low=rate["low"],
        high=rate["high"],
        length_controlled=Interval(
            value=found["length_controlled"],
            low=found.get("length_controlled_low"),  # evaluations of earlier releases have none
            high=found.get("length_controlled_high"),
        ),
    )


def _model_figures(found: Mapping[str, Any]) -> dict[str, float]:
    """Everything that is a number, the reference metrics too."""
    flat = {**found, **(found.get("references") or {})}
    return {name: float(flat[name]) for name in MODEL_FIGURES if flat.get(name) is not None}


def _tally(rate: Mapping[str, Any]) -> Tally:
    """Counts from a rate: its value counts a tie half."""
    win = round(rate["value"] * rate["n"] - rate["ties"] / 2)
    return Tally(win=win, tie=rate["ties"], loss=rate["n"] - rate["ties"] - win)
