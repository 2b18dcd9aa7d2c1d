"""The whole run: base model, the recipe's stages in their order, then the gate, the registry and the report."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run as running

from alignment.errors import Fault, InputError, StageError, keeping, suggestion
from alignment.recipe.base import BASE, CHAMPION, MADE_BASE
from alignment.recipe.graph import of_type, seen_by, stage_inputs
from alignment.recipe.load import dump_recipe
from alignment.recipe.recipe import Recipe
from alignment.recipe.stages.feedback.preferences import HumanPreferencesStage
from alignment.records import Artifact
from alignment.report import Registered, build_report, write_report
from flows.monitoring.background import background, server_writes
from flows.monitoring.dashboard import name_version, show_queues, show_report
from flows.monitoring.logs import LOG_FILE, about, log_file, say
from flows.monitoring.progress import listener
from flows.pipeline.announce import announce, tell
from flows.pipeline.conclusion import final_state, next_commands
from flows.pipeline.leaderboard_votes import human_games, registered_names
from flows.pipeline.orchestration import (
    begin_flow,
    begin_services,
    end_services,
    endings,
    give_up_on_the_server,
    run_flow,
    run_task,
    watched,
)
from flows.pipeline.register import commit, finish_task, with_approval
from flows.pipeline.run_state import Run, RunRequest, StageOutcome, WaitingForRaters
from flows.pipeline.stage_task import base_task, execute, made_of, make_job, stage_task
from flows.run_record import write_record
from flows.services.process_registration import answer_for

_log = logging.getLogger(__name__)


@flow(name="alignment", flow_run_name="{request.run}", validate_parameters=False, persist_result=False)
def pipeline(request: RunRequest) -> State[Any]:
    """Runs a recipe. The final state says whether the gate promoted, refused, or had nothing to decide."""
    answer_for(running.get_id())
    with endings.noting(request.run) as note, watched(request.workspace, listener.get().warned):
        try:
            state = run_to_its_end(request)
            note(state)
            return state
        finally:
            if not server_writes(running.get_id()):
                give_up_on_the_server()


def run_pipeline(request: RunRequest, timeout_seconds: float | None = None) -> State[Any]:
    """Runs a recipe as a Prefect flow to its final state, which a server that goes away meanwhile does not change."""
    begin_services()
    timed = pipeline.with_options(timeout_seconds=timeout_seconds) if timeout_seconds else pipeline
    try:
        return run_flow(
            lambda: begin_flow(timed, request),
            lambda: run_to_its_end(request),
            run=request.run,
            root=request.workspace,
        )
    finally:
        background.drain()
        end_services()


def run_to_its_end(request: RunRequest) -> State[Any]:
    """Runs the stages, and tells whoever wants to hear how it ended."""
    run = Run(request)
    folder = run.workspace.folder("runs", request.run)
    with about(run=request.run, recipe=run.recipe.name), log_file(folder / LOG_FILE):
        write_record(folder, request.data, request.flow_run)
        try:
            return _to_its_end(run)
        except Exception:
            _log.exception("the run failed")
            raise


def _to_its_end(run: Run) -> State[Any]:
    request = run.request
    try:
        with run.workspace.under_way(request.run):
            run_stages(run)
    except Exception as error:
        with keeping(error, "telling of it"):
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
        if run.recipe.model.base != MADE_BASE:
            prepare_base(run)
        for name in run.recipe.stages:
            run_stage(run, name)
        decide(run)
    except WaitingForRaters as wait:
        run.waiting = str(wait)
    except BaseException as error:
        with keeping(error, "writing its report"):
            publish_report(run)
        raise
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
    wanted = _wanted(run.request, name)
    data = data_of(run, name, wanted=wanted)
    if data is None:
        return
    sources = {source for named in stage_inputs(run.recipe.stages[name]).values() for source in named}
    recipe, made = run.recipe, seen_by(name, run.recipe.stages, run.made)
    if not wanted and not sources - {CHAMPION} <= made.keys():
        return  # never run with these settings, and not asked for
    if CHAMPION in sources:
        from alignment.registry.champion import with_champion  # MLflow takes its time

        recipe, made = with_champion(run.workspace, name, recipe, made)
    if (champion := made.get(CHAMPION)) is not None and not run.workspace.claim(champion, run.request.run):
        raise StageError(f"{champion.ref()} was removed while this run began to use it; give the same command again")
    job = make_job(name, recipe, made, data, run.workspace, run.request.run)
    job = replace(job, refresh=name in run.request.refresh)
    if not wanted:
        found = run.workspace.find(name, job.key, listener.get().warned)
        if found is not None and run.workspace.claim(found, run.request.run):
            run.made[name] = found
        return
    with outcome(run, name, job.settings.kind) as result:
        say(_log, made_of(job))
        sources = {one.name if source == BASE else source for source, one in job.inputs.items()}
        inputs = [state for source, state in run.states.items() if source in sources]
        state, done = run_task(run.workspace.root, stage_task(job), execute, job, inputs=inputs)
        run.states[name] = state
        result.cached = state.name == "Cached"
        result.artifact = run.made[name] = Artifact.model_validate(done)


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
        naming_the_store,
        queue_for_raters,
        remember_waiting,
        standings,
    )  # the raters' store takes its time

    if not wanted:
        try:
            with naming_the_store(run.workspace):
                votes = collected(name, recipe, run.made, run.workspace, request.ready)
        except StageError as error:
            listener.get().warned(f"{name} is left out: {error}")
            return None
        return None if votes is None else {**request.data, **votes}
    if settings.responses not in run.made:
        return request.data  # make_job says what is missing
    try:
        with naming_the_store(run.workspace):
            queue_for_raters(name, recipe, run.made, run.workspace, request.data)
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
    if gate is None or not _wanted(run.request, gate.evaluation) or gate.evaluation not in run.made:
        return
    with outcome(run, "register", "register") as result:
        inputs = list(run.states.values())
        deployed = run.request.flow_run is not None
        finish, result.cached = finish_task(
            run.recipe, run.made, run.workspace, run.request.run, inputs, deployed=deployed
        )
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
        commands=next_commands(run),
        work_seconds={"register": finish.work_seconds} if finish else {},
        games=human_games(run.workspace),
        names=registered_names(run.workspace),
    )
    show_report(report, write_report(report, folder))


def missing_inputs(recipe: Recipe, only: str | None, start: str | None, refresh: Sequence[str]) -> list[Fault]:
    """Faults of ``only``, ``start`` and ``refresh``: stages that the recipe does not have, or that are left out."""
    stages = list(recipe.stages)
    named = [("--only", only), ("--from", start), *(("--refresh", name) for name in refresh)]
    unknown = [(option, name) for option, name in named if name is not None and name not in stages]
    faults = [
        Fault(f"no stage {name!r} in the recipe", suggestion(name, stages), field=option) for option, name in unknown
    ]
    if faults:
        return faults
    return [
        Fault(f"stage {name} is not run at all", f"leave {name} out here, or ask for it there", field="--refresh")
        for name in refresh
        if not _is_wanted(stages, only, start, name)
    ]


def _wanted(request: RunRequest, name: str) -> bool:
    """Whether a stage is to be run or found, and not only to be taken from the cache for others."""
    return _is_wanted(list(request.recipe.stages), request.only, request.start, name)


def _is_wanted(stages: Sequence[str], only: str | None, start: str | None, name: str) -> bool:
    if only is not None:
        return name == only
    return start is None or stages.index(name) >= stages.index(start)


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
        with keeping(wait, f"telling of {name}"):
            _tell_of_outcome(run, result, started)
        raise
    except BaseException as error:
        result.status, result.error = "failed", f"{type(error).__name__}: {error}"
        with keeping(error, f"telling of {name}"):
            _tell_of_outcome(run, result, started)
        raise
    _tell_of_outcome(run, result, started)


def _tell_of_outcome(run: Run, result: StageOutcome, started: float) -> None:
    """Adds a stage's outcome to the run's, and tells the log and the listener."""
    result.seconds = time.perf_counter() - started
    run.outcomes.append(result)
    reference = str(result.artifact.ref()) if result.artifact else ""
    summary = result.error.splitlines()[0] if result.error else reference or result.note
    made = {"version": reference, "digest": result.artifact.digest} if result.artifact else {}
    ended = "cached" if result.cached else result.status
    say(_log, f"{result.name}: {ended}", stage=result.name, kind=result.kind, status=ended,
        seconds=round(result.seconds, 3), error=result.error or None, **made)  # fmt: skip
    listener.get().stage_finished(
        result.name, status=result.status, cached=result.cached, seconds=result.seconds, summary=summary
    )


def check_start(recipe: Recipe, only: str | None, start: str | None, refresh: Sequence[str] = ()) -> None:
    """Raises InputError where ``only``, ``start`` or ``refresh`` cannot be done."""
    if faults := missing_inputs(recipe, only, start, refresh):
        raise InputError(faults)
