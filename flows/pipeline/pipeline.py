"""The whole run: base model, the recipe's stages in their order, then the gate, the registry and the report."""

import logging
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run as running
from prefect.states import Completed, Failed
from pydantic import BaseModel

from alignment.errors import Fault, InputError
from alignment.recipe.base import BASE, CHAMPION
from alignment.recipe.graph import of_type, stage_inputs
from alignment.recipe.load import dump_recipe
from alignment.recipe.recipe import Recipe
from alignment.recipe.resolved import ResolvedRecipe
from alignment.recipe.stages.preferences import HumanPreferencesStage
from alignment.records import Artifact
from alignment.report import Command, Registered, build_report, write_report
from alignment.workspace import Workspace
from flows.monitoring.background import background, server_answers
from flows.monitoring.dashboard import name_version, show_queues, show_report
from flows.monitoring.logs import about, say
from flows.monitoring.progress import listener
from flows.pipeline.announce import announce, tell
from flows.pipeline.leaderboard_votes import human_games, registered_names
from flows.pipeline.orchestration import endings, give_up_on_the_server, run_flow, run_task, watched
from flows.pipeline.register import Finish, commit, finish_task, with_approval
from flows.pipeline.stage_task import base_task, execute, made_elsewhere, made_of, make_job, stage_task
from flows.services.process_records import answer_for

_log = logging.getLogger(__name__)
Status = Literal["completed", "failed", "skipped", "waiting"]


class RunRequest(BaseModel):
    """What a run is asked to do; its fields are the flow's parameters on the dashboard.

    ``only`` runs one stage and
    ``start`` runs from one on; the stages before are then taken from the cache and nowhere else. ``ready`` maps a queue
    of people's votes to the digest of the snapshot that the run was started for.
    """

    resolved: ResolvedRecipe
    workspace: Path
    run: str
    only: str | None = None
    start: str | None = None
    ready: dict[str, str] = {}

    @property
    def recipe(self) -> Recipe:
        return self.resolved.recipe

    @property
    def data(self) -> dict[str, Path]:
        return self.resolved.data


class WaitingForRaters(Exception):  # noqa: N818  (nothing went wrong)
    """The votes of a queue are not there yet; the message says what people have to do."""


@dataclass(slots=True)
class StageOutcome:
    """How one stage of a run ended."""

    name: str
    kind: str
    status: Status
    cached: bool
    seconds: float
    artifact: Artifact | None = None
    error: str = ""
    note: str = ""


@dataclass(slots=True)
class Run:
    """A run under way: what it made so far."""

    request: RunRequest
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    made: dict[str, Artifact] = field(default_factory=dict)
    states: dict[str, State[Any] | None] = field(default_factory=dict)  # of the tasks that made them
    outcomes: list[StageOutcome] = field(default_factory=list)
    finish: Finish | None = None
    waiting: str = ""

    @property
    def workspace(self) -> Workspace:
        return Workspace(self.request.workspace)

    @property
    def recipe(self) -> Recipe:
        return self.request.recipe

    @property
    def report(self) -> Path:
        return self.workspace.root / "runs" / self.request.run / "report.html"


@flow(name="alignment", flow_run_name="{request.run}", validate_parameters=False, persist_result=False)
def pipeline(request: RunRequest) -> State[Any]:
    """Runs a recipe. The final state says whether the gate promoted, refused, or had nothing to decide."""
    answer_for(running.get_id())
    with endings.noting(request.run) as note, watched(request.workspace, listener.get().note):
        state = run_to_its_end(request)
        note(state)
        if not server_answers():
            give_up_on_the_server()
        return state


def run_pipeline(request: RunRequest, timeout_seconds: float | None = None) -> State[Any]:
    """Runs a recipe as a Prefect flow to its final state, which a server that goes away meanwhile does not change."""
    timed = pipeline.with_options(timeout_seconds=timeout_seconds) if timeout_seconds else pipeline
    state = run_flow(timed, lambda: run_to_its_end(request), request, run=request.run, root=request.workspace)
    background.drain()
    return state


def run_to_its_end(request: RunRequest) -> State[Any]:
    """Runs the stages, and tells whoever wants to hear how it ended."""
    run = Run(request)
    with about(run=request.run, recipe=run.recipe.name):
        return _to_its_end(run)


def _to_its_end(run: Run) -> State[Any]:
    request = run.request
    try:
        run_stages(run)
    except Exception as error:
        tell(run.recipe, request.run, run.report, state=None, error=error)
        raise
    state = final_state(run)
    if run.finish is not None:
        made = f"{run.finish.name} v{run.finish.version}"
        name_version(request.run, f"{made} {str(state.name).lower()}")
    tell(run.recipe, request.run, run.report, state=state, finish=run.finish, workspace=run.workspace)
    return state


def run_stages(run: Run) -> None:
    """Everything that a run does, and its report, however far it came."""
    try:
        prepare_base(run)
        for name in run.recipe.stages:
            run_stage(run, name)
        decide(run)
    except WaitingForRaters as wait:
        run.waiting = str(wait)
    finally:
        publish_report(run)


def prepare_base(run: Run) -> None:
    """Finds or converts the base model."""
    with outcome(run, BASE, "base") as result:
        state, made = run_task(run.workspace.root, base_task, base_task.fn, run.recipe, run.workspace)
        run.states[BASE] = state
        result.artifact = run.made[BASE] = Artifact.model_validate(made)
        result.cached = result.artifact.work_seconds == 0.0


def run_stage(run: Run, name: str) -> None:
    """Runs one stage, or takes it from the cache; leaves it out where the request says so."""
    wanted = _wanted(run, name)
    data = data_of(run, name, wanted=wanted)
    if data is None:
        return
    sources = {source for named in stage_inputs(run.recipe.stages[name]).values() for source in named}
    if not wanted and not sources - {CHAMPION} <= run.made.keys():
        return  # never run with these settings, and not asked for
    recipe, made = run.recipe, run.made
    if CHAMPION in sources:
        from alignment.registry.champion import with_champion  # MLflow takes its time

        recipe, made = with_champion(run.workspace, name, recipe, made)
    job = make_job(name, recipe, made, data, run.workspace)
    found = run.workspace.find(name, job.key)
    if not wanted:
        if found is not None:
            run.made[name] = found
        return
    with outcome(run, name, job.settings.kind) as result:
        say(_log, made_of(job))
        inputs = [state for source in job.inputs if (state := run.states.get(source)) is not None]
        state, made = run_task(run.workspace.root, stage_task(job), execute, job, inputs=inputs)
        run.states[name] = state
        result.artifact = run.made[name] = Artifact.model_validate(made)
        result.cached = found is not None or (state is not None and state.name == "Cached") or job.key in made_elsewhere


def data_of(run: Run, name: str, *, wanted: bool) -> dict[str, Path] | None:
    """The files that a stage may read; None for a stage left out whose votes are not there.

    Raises WaitingForRaters where people have to vote first.
    """
    request, recipe = run.request, run.recipe
    settings = dict(of_type(recipe.stages, HumanPreferencesStage)).get(name)
    if settings is None:
        return request.data
    from flows.pipeline.human_votes import (
        collected,
        queue_for_raters,
        remember_waiting,
        standings,
    )  # the raters' store takes its time

    if not wanted:
        votes = collected(name, recipe, run.made, run.workspace, request.ready)
        return None if votes is None else {**request.data, **votes}
    if settings.responses not in run.made:
        return request.data  # make_job says what is missing
    try:
        queue_for_raters(name, recipe, run.made, run.workspace)
        votes = collected(name, recipe, run.made, run.workspace, request.ready)
    except Exception:  # nobody may be watching: the report says at which stage it was
        with outcome(run, name, settings.kind):
            raise
    if votes is None:
        show_queues(standings(run.workspace))
        with outcome(run, name, settings.kind):
            raise WaitingForRaters(remember_waiting(name, request.resolved, run.made, run.workspace))
    return {**request.data, **votes}


def decide(run: Run) -> None:
    """The gate's verdict on the evaluation, and the version's place in the registry that follows from it."""
    gate = run.recipe.gate
    if gate is None or not _wanted(run, gate.evaluation) or gate.evaluation not in run.made:
        return
    with outcome(run, "register", "register") as result:
        inputs = [state for state in run.states.values() if state is not None]
        finish, result.cached = finish_task(run.recipe, run.made, run.workspace, run.request.run, inputs)
        run.finish = with_approval(finish, run.workspace)
        announce(run.recipe, run.finish, run.workspace, run.request.run)


def publish_report(run: Run) -> None:
    """Writes the report, also of a run that failed, and links it on the dashboard."""
    folder = run.workspace.folder("runs", run.request.run)
    finish = run.finish
    registered = None
    if finish is not None:
        aliases = (finish.alias,) if finish.alias else ()
        place = str(run.workspace.root.resolve() / finish.folder)
        registered = Registered(name=finish.name, version=finish.version, aliases=aliases, folder=place)
    report = build_report(
        run.workspace,
        run.recipe,
        run.made,
        run.outcomes,
        run=run.request.run,
        recipe_text=dump_recipe(run.recipe),
        recipe_digest=run.request.resolved.digest,
        commit=commit(),
        started=run.started,
        finished=datetime.now(UTC),
        verdict=finish.verdict if finish else None,
        registered=registered,
        commands=_commands(run),
        work_seconds={"register": finish.work_seconds} if finish else {},
        games=human_games(run.workspace),
        names=registered_names(run.workspace),
    )
    show_report(report, write_report(report, folder))


def _commands(run: Run) -> list[Command]:
    """What to do next, each as a line for the shell."""
    where = f"-w {shlex.quote(str(run.request.workspace))}"
    recipe = shlex.quote(str(run.workspace.root / "runs" / run.request.run / "recipe.yaml"))
    commands = [
        Command(purpose="Repeat this run, or go on with it where it stopped", line=f"rlhf run {recipe} {where}")
    ]
    if run.finish:
        version = run.finish.reference
        commands.insert(0, Command(purpose="Talk with this version", line=f"rlhf chat {version} {where}"))
        if run.finish.verdict.waits and not run.finish.approved:
            approve = f"rlhf models promote {version} {where} --reason '…'"
            commands.insert(0, Command(purpose="Approve this version, which waits for a person", line=approve))
        commands.append(Command(purpose="Its whole lineage", line=f"rlhf models show {version} {where} --json"))
    return commands


def final_state(run: Run) -> State[Any]:
    """The flow's last state: a refusal is a failure by name, so that automations can tell it from a broken stage."""
    if run.waiting:
        return Completed(name="Waiting", message=run.waiting)
    if run.finish is None:
        return Completed(message="no gate in this run")
    if run.finish.promoted:
        return Completed(name="Promoted", message=run.finish.sentence)
    if run.finish.verdict.waits:
        return Completed(name="AwaitingApproval", message=run.finish.sentence)
    return Failed(name="Refused", message=run.finish.sentence)


def missing_inputs(request: RunRequest) -> list[Fault]:
    """Faults of a request for ``only`` or ``start`` whose earlier stages were never run with these settings."""
    faults = []
    for field_name, value in (("--only", request.only), ("--from", request.start)):
        if value is not None and value not in request.recipe.stages:
            known = ", ".join(request.recipe.stages)
            faults.append(Fault(f"no stage {value!r} in the recipe", f"its stages are: {known}", field=field_name))
    return faults


def _wanted(run: Run, name: str) -> bool:
    stages = list(run.recipe.stages)
    if run.request.only is not None:
        return name == run.request.only
    return run.request.start is None or stages.index(name) >= stages.index(run.request.start)


@contextmanager
def outcome(run: Run, name: str, kind: str) -> Iterator[StageOutcome]:
    """Records how a stage ends, whichever way, and tells the listener."""
    result = StageOutcome(name, kind, "completed", cached=False, seconds=0.0)
    started = time.perf_counter()
    listener.get().stage_started(name, kind)
    try:
        with about(stage=name, kind=kind):
            say(_log, f"{name} begins")
            yield result
    except WaitingForRaters as wait:
        result.status, result.note = "waiting", str(wait)
        raise
    except BaseException as error:
        result.status, result.error = "failed", f"{type(error).__name__}: {error}"
        raise
    finally:
        result.seconds = time.perf_counter() - started
        run.outcomes.append(result)
        summary = (
            result.error.splitlines()[0]
            if result.error
            else str(result.artifact.ref())
            if result.artifact
            else result.note
        )
        made = {"version": str(result.artifact.ref()), "digest": result.artifact.digest} if result.artifact else {}
        ended = "cached" if result.cached else result.status
        say(_log, f"{name}: {ended}", stage=name, kind=kind, status=ended, seconds=round(result.seconds, 3),
            error=result.error or None, **made)  # fmt: skip
        listener.get().stage_finished(
            name, status=result.status, cached=result.cached, seconds=result.seconds, summary=summary
        )


def check_start(request: RunRequest) -> None:
    """Raises InputError where ``only`` or ``start`` cannot be done."""
    if faults := missing_inputs(request):
        raise InputError(faults)
