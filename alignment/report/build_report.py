"""From a run's artifacts to its report: the one place that knows which stage leaves what in which file."""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Protocol

from alignment.evaluation.gate import GateVerdict
from alignment.evaluation.leaderboard import Game, leaderboard
from alignment.judges.report import judge_words
from alignment.recipe.base import BASE, CHAMPION, Product
from alignment.recipe.graph import making, of_type, stage_inputs
from alignment.recipe.recipe import Recipe
from alignment.recipe.stages.evaluate import EvaluateStage
from alignment.recipe.stages.feedback.preferences import PreferencesStage
from alignment.records import Artifact, FeedbackKind
from alignment.registry.lineage import LineageNode, node_id, node_ref, trace
from alignment.registry.store import read_curves
from alignment.report.benchmarks import benchmarks
from alignment.report.evaluations import accuracy_slices, evaluated
from alignment.report.experiments import overoptimisations, tournaments
from alignment.report.feedback import constitutions, syntheses, writer_words
from alignment.report.judges import judge_reports, uncalibrated
from alignment.report.run_report import (
    Command,
    Cost,
    Curve,
    Edge,
    Interval,
    LineageReport,
    Node,
    PreferenceReport,
    Registered,
    ReliabilityRow,
    RewardReport,
    RunReport,
    StageReport,
)
from alignment.report.samples import choose_samples
from alignment.workspace import Workspace

JUDGED: tuple[Product, ...] = ("preferences", "feedback", "scores", "spans")  # what raters of any kind make
NOT_PART, NOT_REACHED = "not part of this recipe", "not reached in this run"


class StageEnd(Protocol):
    """How one stage of a run ended."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def status(self) -> str: ...
    @property
    def cached(self) -> bool: ...
    @property
    def seconds(self) -> float: ...
    @property
    def artifact(self) -> Artifact | None: ...
    @property
    def error(self) -> str: ...


def build_report(
    workspace: Workspace,
    recipe: Recipe,
    artifacts: Mapping[str, Artifact],
    outcomes: Sequence[StageEnd],
    *,
    run: str,
    recipe_text: str,
    recipe_digest: str,
    commit: str | None,
    started: datetime,
    finished: datetime,
    verdict: GateVerdict | None = None,
    registered: Registered | None = None,
    commands: Sequence[Command] = (),
    work_seconds: Mapping[str, float] | None = None,
    games: Sequence[Game] = (),
    names: Mapping[str, Sequence[str]] | None = None,
) -> RunReport:
    """The report of a run, also of one that failed half-way.

    ``artifacts`` are what the run made or took from the cache, by stage, base model included. ``work_seconds`` gives
    the working time of steps that make no artifact; ``games`` and ``names`` are those of
    :func:`~alignment.evaluation.leaderboard.leaderboard`. What the recipe does not have, or
    the run did not reach, is left out and shown as such.
    """
    evaluation = evaluated(recipe, artifacts)
    chosen = choose_samples(Path(artifacts[evaluation[0]].path), evaluation[1]) if evaluation else ((), "")
    made = [outcome.artifact for outcome in outcomes if outcome.artifact and not outcome.cached]
    return RunReport(
        run=run,
        recipe_name=recipe.name,
        description=recipe.description,
        recipe_digest=recipe_digest,
        commit=commit,
        started=started,
        finished=finished,
        seconds=(finished - started).total_seconds(),
        stages=tuple(_stage(outcome, work_seconds or {}) for outcome in outcomes),
        gate=verdict,
        cost=_cost(made),
        cost_with_cached=_cost(list(artifacts.values())),
        base=recipe.model.base,
        recipe=recipe_text,
        registered=registered,
        lineage=_lineage(workspace, recipe, artifacts, registered),
        evaluation=evaluation[1] if evaluation else None,
        tournaments=tournaments(recipe, artifacts),
        overoptimisations=overoptimisations(recipe, artifacts),
        benchmarks=benchmarks(recipe, artifacts),
        leaderboard=leaderboard(workspace, games, names),
        rewards=tuple(_rewards(recipe, artifacts)),
        preferences=tuple(_preferences(recipe, artifacts)),
        judges=(judges := judge_reports(recipe, artifacts)),
        uncalibrated=uncalibrated(recipe, artifacts, judges),
        constitutions=constitutions(recipe, artifacts),
        syntheses=syntheses(recipe, artifacts),
        curves={name: curves for name, a in artifacts.items() if (curves := _curves(Path(a.path)))},
        samples=chosen[0],
        samples_chosen=chosen[1],
        commands=tuple(commands),
        absent=_absent(recipe, artifacts, verdict),
    )


def _absent(recipe: Recipe, artifacts: Mapping[str, Artifact], verdict: GateVerdict | None) -> dict[str, str]:
    """Why a part of the report is missing: the recipe has no such stage, or the run did not get there."""
    parts: dict[str, tuple[Product, ...]] = {
        "training": ("policy",),
        "preferences": JUDGED,
        "reward model": ("reward_model",),
        "evaluation": ("evaluation",),
    }
    absent = {} if verdict else {"gate": NOT_REACHED if recipe.gate else NOT_PART}
    for part, products in parts.items():
        names = making(recipe.stages, *products)
        if not names:
            absent[part] = NOT_PART
        elif not any(name in artifacts for name in names):
            absent[part] = NOT_REACHED
    return absent


def _stage(outcome: StageEnd, work_seconds: Mapping[str, float]) -> StageReport:
    artifact = outcome.artifact
    worked = work_seconds.get(outcome.name, artifact.work_seconds if artifact else 0.0)
    return StageReport(
        name=outcome.name,
        kind=outcome.kind,
        status=outcome.status,
        cached=outcome.cached,
        seconds=outcome.seconds,
        work_seconds=0.0 if outcome.cached else worked,
        inputs=tuple(artifact.inputs.values()) if artifact else (),
        outputs=(artifact.ref(),) if artifact else (),
        metrics=artifact.metrics if artifact else {},
        alarms=_alarms(Path(artifact.path)) if artifact else (),
        error=outcome.error,
    )


def _cost(artifacts: Sequence[Artifact]) -> Cost:
    return Cost(
        cpu_seconds=sum(artifact.cpu_seconds for artifact in artifacts),
        gpu_seconds=sum(artifact.gpu_seconds for artifact in artifacts),
        tokens_trained=sum(artifact.tokens_trained for artifact in artifacts),
        tokens_sampled=sum(artifact.tokens_sampled for artifact in artifacts),
    )


def _alarms(folder: Path) -> tuple[str, ...]:
    path = folder / "alarms.json"
    return tuple(json.loads(path.read_text("utf-8"))) if path.exists() else ()


def _curves(folder: Path) -> dict[str, Curve]:
    return {name: tuple(curve) for name, curve in read_curves(folder).items() if curve}


def _rewards(recipe: Recipe, artifacts: Mapping[str, Artifact]) -> list[RewardReport]:
    reports = []
    for name in making(recipe.stages, "reward_model", "pair_classifier"):
        if name not in artifacts:
            continue
        metrics = artifacts[name].metrics
        found = json.loads((Path(artifacts[name].path) / "held_out.json").read_text("utf-8"))
        rows = tuple(ReliabilityRow(**{k: row[k] for k in ReliabilityRow.model_fields}) for row in found["reliability"])
        reports.append(
            RewardReport(
                stage=name,
                accuracy=metrics["accuracy"],
                low=metrics["accuracy.low"],
                high=metrics["accuracy.high"],
                margins=tuple(found["margins"]),
                reliability=rows,
                ece=_ece(metrics),
                slices=accuracy_slices(found.get("slices", [])),
            )
        )
    return reports


def _ece(metrics: Mapping[str, float]) -> Interval | None:
    parts = {"value": "ece.debiased", "low": "ece.low", "high": "ece.high"}
    return Interval(**{part: metrics.get(name) for part, name in parts.items()}) if "ece.debiased" in metrics else None


def _preferences(recipe: Recipe, artifacts: Mapping[str, Artifact]) -> list[PreferenceReport]:
    reports = []
    for name, stage in making(recipe.stages, *JUDGED).items():
        if name not in artifacts:
            continue
        words = _RATERS.get(stage.kind, _itself)
        reports.append(
            PreferenceReport(
                stage=name,
                raters=words(recipe, artifacts[name]),
                simulated=stage.kind == "preferences",
                figures=artifacts[name].metrics,
            )
        )
    return reports


def _itself(_recipe: Recipe, artifact: Artifact) -> str:
    return f"the stage {artifact.name}"


def _programs(recipe: Recipe, artifact: Artifact) -> str:
    count = dict(of_type(recipe.stages, PreferencesStage))[artifact.name].raters.count
    return f"{count} simulated raters: programs that follow a written rubric, with noise"


def _judge(recipe: Recipe, artifact: Artifact) -> str:
    measured = judge_reports(recipe, {artifact.name: artifact})[artifact.name]
    return judge_words(measured.judge, measured)


def _writer(recipe: Recipe, artifact: Artifact) -> str:
    return writer_words(constitutions(recipe, {artifact.name: artifact})[artifact.name])


def _file(recipe: Recipe, _artifact: Artifact) -> str:
    return f"a file that the user brought ({Path(recipe.data.preferences or '').name})"


def _people(_recipe: Recipe, artifact: Artifact) -> str:
    found = json.loads((Path(artifact.path) / "agreement.json").read_text("utf-8"))
    alpha = found["krippendorff_alpha"]
    agree = (
        "; too few of them judged the same answers to say how far they agree" if alpha is None else f"; α = {alpha:.2f}"
    )
    agree = "" if found.get("feedback") == "rewrites" else agree  # no two write the same
    who = "1 person" if found["raters"] == 1 else f"{found['raters']} people"
    asked = _ASKED[found.get("feedback", "pairs")]
    return f"{who} in the app{asked} ({found['votes']} votes{agree}); snapshot {found['digest'][:12]}"


_ASKED: dict[FeedbackKind, str] = {  # what people were asked, where they did not compare
    "pairs": "", "thumbs": ", thumbs up or down on single answers", "rewrites": ", who wrote better answers",
    "scores": ", who scored single answers", "spans": ", who marked parts of single answers",
}  # fmt: skip
_RATERS: dict[str, Callable[[Recipe, Artifact], str]] = {  # who compared, by the kind of the stage
    "preferences": _programs,
    "human_preferences": _people,
    "judge": _judge,
    "constitution": _writer,
    "preference_file": _file,
}


def _lineage(
    workspace: Workspace, recipe: Recipe, artifacts: Mapping[str, Artifact], registered: Registered | None
) -> LineageReport | None:
    if len(artifacts) < 2:
        return None
    gate = recipe.gate
    evaluation = dict(of_type(recipe.stages, EvaluateStage)).get(gate.evaluation) if gate else None
    evaluation = evaluation if gate and gate.evaluation in artifacts else None
    roots = [gate.evaluation] if gate and evaluation else [name for name in artifacts if name != BASE]
    candidate = evaluation.model if evaluation is not None else None
    nodes = _shown(trace(workspace, artifacts, roots).nodes, [artifacts[name] for name in roots])
    label = f"{registered.name} v{registered.version}" if registered else ""
    return LineageReport(
        nodes=tuple(
            Node(**node_ref(node).model_dump(), label=label if node.name == candidate else "") for node in nodes
        ),
        edges=tuple(
            Edge(source=node_id(ref), target=node.id, role=_role(recipe, node.name, name))
            for node in nodes
            for name, ref in node.inputs.items()
            if node_id(ref) in {other.id for other in nodes}
        ),
    )


def _shown(nodes: Sequence[LineageNode], roots: Sequence[Artifact]) -> list[LineageNode]:
    """What the roots were made of; of a champion that was only compared with, not what that was made of in turn."""
    by_id = {node.id: node for node in nodes}
    reached: set[str] = set()
    queue = [node_id(root) for root in roots]
    while queue:
        if (here := queue.pop()) in reached:
            continue
        reached.add(here)
        queue += [node_id(ref) for name, ref in by_id[here].inputs.items() if name != CHAMPION]
    compared = {node_id(node.inputs[CHAMPION]) for node in nodes if node.id in reached and CHAMPION in node.inputs}
    return [node for node in nodes if node.id in reached | compared]


def _role(recipe: Recipe, stage: str, source: str) -> str:
    """The parts that ``source`` plays for a stage: "model", "preferences" …; "" where it is only an adapter's base."""
    roles = stage_inputs(recipe.stages[stage]) if stage in recipe.stages else {}
    return ", ".join(role for role, names in roles.items() if source in names)
