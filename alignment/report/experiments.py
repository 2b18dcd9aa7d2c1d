"""What a tournament and an over-optimisation experiment left behind, as the report shows them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignment.recipe.graph import of_type
from alignment.recipe.recipe import Recipe
from alignment.recipe.stages.experiments.overoptimisation import OveroptimisationStage
from alignment.recipe.stages.experiments.tournament import TournamentStage
from alignment.records import Artifact
from alignment.report.run_report import (
    Interval,
    OveroptimisationReport,
    StandingReport,
    TournamentReport,
    Way,
    WayPoint,
)


def tournaments(recipe: Recipe, artifacts: Mapping[str, Artifact]) -> tuple[TournamentReport, ...]:
    """Every tournament of a run that was played."""
    found = []
    for name, _stage in of_type(recipe.stages, TournamentStage):
        if name in artifacts:
            told = _read(artifacts[name], "tournament.json")
            whole = {part: told[part] for part in ("start", "winner", "prompts", "judge")}
            found.append(TournamentReport(stage=name, standings=tuple(map(_standing, told["standings"])), **whole))
    return tuple(found)


def overoptimisations(recipe: Recipe, artifacts: Mapping[str, Artifact]) -> tuple[OveroptimisationReport, ...]:
    """Every over-optimisation experiment of a run that was measured."""
    found = []
    for name, _stage in of_type(recipe.stages, OveroptimisationStage):
        if name in artifacts:
            told = _read(artifacts[name], "overoptimisation.json")
            whole = {part: told[part] for part in ("start", "prompts", "judge")}
            ways = {way: _way(points, told["shapes"][way]) for way, points in told["ways"].items()}
            found.append(OveroptimisationReport(stage=name, ways=ways, **whole))
    return tuple(found)


def _standing(told: Mapping[str, Any]) -> StandingReport:
    return StandingReport(
        player=told["player"],
        rate=_interval(told["rate"]) if told["rate"] else None,
        length_controlled=_interval(equal) if (equal := told.get("length_controlled")) else None,
        rating=Interval(value=told["rating"], low=told["rating_low"], high=told["rating_high"]),
        kl=told["kl"],
        kl_bound=told["kl_bound"],
        model=told["model"],
        length=told["length"],
    )


def _way(points: list[Mapping[str, Any]], shape: Mapping[str, Any]) -> Way:
    return Way(
        words=shape["words"],
        best_step=shape["best_step"],
        best_kl=shape["best_kl"],
        rise=_interval(shape["rise"]),
        fall=_interval(shape["fall"]),
        points=tuple(
            WayPoint(step=p["step"], kl=p["kl"], proxy=_interval(p["proxy"]), true=_interval(p["true"])) for p in points
        ),
    )


def _interval(told: Mapping[str, Any]) -> Interval:
    return Interval(value=told["value"], low=told["low"], high=told["high"])


def _read(artifact: Artifact, name: str) -> Any:
    return json.loads((Path(artifact.path) / name).read_text("utf-8"))
