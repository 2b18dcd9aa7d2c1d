"""A recipe that runs by itself: on a schedule, after other recipes' events, and whenever its raters' votes are enough.

``rlhf deploy`` serves one: a process that waits for work and runs each in a process of its own. What the event
``preferences.ready`` starts is the very recipe that waited, on the very snapshot that the event names. Where that run
promotes a version, the next round begins at once: the new version answers the prompts, and its answers are queued.
Where its gate asks for a person, the run is suspended until one has answered (:mod:`flows.deployment.approval`).
A run that is cancelled is asked to stop, is killed where it does not (:mod:`flows.shutdown`), and gives back what it
held; the next one goes on from its checkpoint.
"""

import asyncio
import logging
import os
import time
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from prefect import flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.deployments import run_deployment
from prefect.runner import Runner
from prefect.runtime import flow_run as running

from alignment.durable_files import write_text
from alignment.errors import InputError
from alignment.plain_text import markdown_lines
from alignment.recipe.base import MADE_BASE
from alignment.recipe.deployment import Deployment
from alignment.recipe.graph import of_type
from alignment.recipe.recipe import Recipe
from alignment.recipe.resolved import ResolvedRecipe
from alignment.recipe.stages.feedback.preferences import HumanPreferencesStage
from alignment.workspace import Workspace
from flows.deployment.approval import ask, asked_before, question
from flows.deployment.schedule import missed_since, schedule_of, triggers
from flows.deployment.worker import DeploymentWorker, end_with_the_worker, pause, replace_missed
from flows.monitoring.background import background, server_answers
from flows.monitoring.logs import set_up, to_the_dashboard
from flows.pipeline.announce import tell, tell_of_the_end
from flows.pipeline.human_votes import heard, unheard, waiting_recipe
from flows.pipeline.launch import checked
from flows.pipeline.orchestration import address
from flows.pipeline.pipeline import run_pipeline
from flows.pipeline.run_state import RunRequest
from flows.recipe_source import prepare
from flows.runs import claim_run, keep_recipe
from flows.services.guard import guarded
from flows.services.process_registration import answer_for, at_work
from flows.shutdown import SERVED_STEP_SECONDS, SERVED_TOTAL_SECONDS, end_in_time, hear_sigterm, heeding_signals

SERVER_SECONDS = 600.0  # for a server that is away when a run has ended
AGAIN = ("Failed", "TimedOut")  # states that another try may mend; a refusal and a wait are none


def _named() -> str:
    """A run's name on the dashboard: the recipe, and what it was started for."""
    given = running.get_parameters()
    queue = given.get("queue") or ""
    return (
        f"{Path(given['recipe']).stem} on the votes of {queue}" if queue else f"{Path(given['recipe']).stem} deployed"
    )


@flow(
    name="recipe", flow_run_name=_named, persist_result=False, validate_parameters=False,
    on_cancellation=[tell_of_the_end], on_crashed=[tell_of_the_end],
)  # fmt: skip
def recipe_flow(
    recipe: str, workspace: str, overrides: list[str] | None = None, queue: str = "", digest: str = ""
) -> State[Any]:
    """Runs a recipe as it is on the disk now; for a ``queue`` that is ready, the recipe that waited for its votes."""
    # Prefect pickles the flow's function by value, with what it names: it names what is pickled by reference.
    return _deployed(recipe, workspace, overrides or [], queue, digest)


def _deployed(recipe: str, workspace: str, overrides: list[str], queue: str, digest: str) -> State[Any]:
    """What the process of one run of the deployment does."""
    set_up()
    to_the_dashboard()
    logging.raiseExceptions = False  # a log that cannot be sent to a server that is away is no traceback
    end_with_the_worker(os.getppid())
    hear_sigterm()
    end_in_time(SERVED_STEP_SECONDS, SERVED_TOTAL_SECONDS)
    space = Workspace(Path(workspace))
    where = address(space.root)
    with heeding_signals(), at_work(space.root, where["api"], ours=where["ours"]):
        answer_for(running.get_id())
        state = _serve_one(recipe, space, overrides, queue, digest)
        background.drain()
        _wait_for_the_server()
        return named(state)


def _serve_one(recipe: str, space: Workspace, overrides: list[str], queue: str, digest: str) -> State[Any]:
    """What one run of the deployment does."""
    if (asked := asked_before(space)) is not None:
        loaded = prepare(str(asked.recipe(space)))
        return _follow(loaded, space, ask(space, asked))
    waited = waiting_recipe(space, queue) if queue else None
    answered = waited is not None and waited.exists()
    loaded = prepare(str(waited)) if answered else prepare(recipe, overrides)
    name, state = _tries(loaded, space, {queue: digest} if queue else {})
    if queue and (state.is_completed() or state.name == "Refused"):
        write_text(heard(space, queue), digest + "\n")
    if state.name == "AwaitingApproval" and (asked := question(space, loaded.recipe, name)) is not None:
        state = ask(space, asked)
    return _follow(loaded, space, state)


def named(state: State[Any]) -> State[Any]:
    """A state of the same type, name and message that belongs to no run: Prefect sums up those that do ("All states
    completed"), and the deployment's run is to end as Promoted, Refused or Waiting."""
    return State(type=state.type, name=state.name, message=state.message)


def _wait_for_the_server() -> None:
    """The flow's last state can be told by nobody else: a server that is away is waited for."""
    deadline = time.monotonic() + SERVER_SECONDS
    while not server_answers() and time.monotonic() < deadline:
        time.sleep(2.0)


def _follow(resolved: ResolvedRecipe, space: Workspace, state: State[Any]) -> State[Any]:
    """Begins the next round after a promotion. Returns the state of the round that ended."""
    following = _next_round(resolved, space, state)
    if following is not None:
        _tries(following, space, {})
    return state


def _tries(resolved: ResolvedRecipe, space: Workspace, ready: dict[str, str]) -> tuple[str, State[Any]]:
    """Runs the recipe, and again where it failed, as often as it says. Each try is a run with a report of its own.

    Returns the last one's name and final state.
    """
    settings = resolved.recipe.deployment
    for left in reversed(range(settings.retries + 1)):
        name, state = _run(resolved, space, ready)
        if state.name not in AGAIN or not left or isinstance(_error(state), InputError):
            break
        get_run_logger().warning("%s; tried again in %g s", state.message, settings.retry_seconds)
        time.sleep(settings.retry_seconds)
    return name, state


def _error(state: State[Any]) -> Any:
    return state.result(raise_on_failure=False) if state.is_failed() else None


def _run(resolved: ResolvedRecipe, space: Workspace, ready: dict[str, str]) -> tuple[str, State[Any]]:
    """Runs a recipe under the next free name. Returns the name and the final state."""
    recipe = resolved.recipe
    try:
        checked(resolved, space)
    except InputError as error:  # its files have changed since it was deployed
        tell(recipe, "", resolved.path, state=None, error=error)
        raise
    name = claim_run(space, recipe.name)
    keep_recipe(space.folder("runs", name) / "recipe.yaml", resolved, space)
    request = RunRequest(resolved=resolved, workspace=space.root, run=name, ready=ready, flow_run=running.get_id())
    state = run_pipeline(request, recipe.deployment.timeout_seconds)
    if state.name == "TimedOut":  # the flow itself could not say so: it was interrupted
        page = space.root / "runs" / name / "report.html"
        tell(recipe, name, page, state=None, error=TimeoutError(state.message or "it took too long"))
    return name, state


def _next_round(resolved: ResolvedRecipe, space: Workspace, state: State[Any]) -> ResolvedRecipe | None:
    """The recipe with the new champion as its base; None where there is no new one, or it cannot be a base."""
    recipe = resolved.recipe
    if state.name != "Promoted" or not any(of_type(recipe.stages, HumanPreferencesStage)):
        return None
    if recipe.model.base == MADE_BASE:
        return None  # its stages make the model that they begin with
    from alignment.registry import find

    folder = Path(find(space, f"{recipe.model.registered_name}@champion").folder)
    weights = folder / "merged" if (folder / "merged").is_dir() else folder
    if (weights / "adapter_config.json").exists():
        return None  # an adapter stands on a base and is none: the recipe's gate says `merge: false`
    model = recipe.model.model_copy(update={"base": str(weights), "revision": None})
    return resolved.with_model(model)


def serve_recipe(given: str, recipe: Recipe, space: Workspace, overrides: list[str], settings: Deployment) -> None:
    """Serves the deployment until it is stopped, and begins with the votes that were ready while nobody listened.

    ``settings`` say when it runs: the recipe's own, or what the command line made of them.
    """
    parameters = {"recipe": given, "workspace": str(space.root), "overrides": overrides}
    where = address(space.root)
    with at_work(space.root, where["api"], ours=where["ours"]) as registration, guarded(space.root):
        worker = DeploymentWorker(name=recipe.name, limit=settings.concurrent, query_seconds=5, pause_on_shutdown=False)
        deployment = register_deployment(worker, recipe, settings, parameters)
        registration.serve(str(deployment))
        worker.root, worker.registration = space.root, registration
        worker.api, worker.deployment = where["api"], str(deployment)
        for queue, digest in unheard(recipe, space).items():  # from here on the trigger hears them
            missed = {**parameters, "queue": queue, "digest": digest}
            run_deployment(f"{recipe_flow.name}/{recipe.name}", parameters=missed, timeout=0, as_subflow=False)
        try:
            asyncio.run(worker.start())
        finally:
            pause(worker.api, worker.deployment)


def register_deployment(worker: Runner, recipe: Recipe, settings: Deployment, parameters: dict[str, Any]) -> UUID:
    """Makes the deployment on the server, or brings it up to date. Returns its id.

    Where its schedule had a time while nobody served it, it runs once now, with what is given here.
    """
    schedule = schedule_of(settings)
    since = missed_since(f"{recipe_flow.name}/{recipe.name}") if schedule is not None else None  # before it is new
    identity = worker.add_flow(
        recipe_flow, name=recipe.name, schedules=[schedule] if schedule else None, triggers=list(triggers(recipe)),
        parameters=parameters, description=markdown_lines(recipe.description), tags=["rlhf"], paused=False,
        concurrency_limit=settings.concurrent,
    )  # fmt: skip
    deployment = cast(UUID, identity)  # no coroutine: no loop runs here
    if schedule is None:
        _forget_schedules(deployment)
    replace_missed(deployment, parameters, since)
    return deployment


def _forget_schedules(deployment: UUID) -> None:
    """Takes the schedules away that an earlier recipe of this name had: Prefect leaves them where there is none now."""
    with get_client(sync_client=True) as client:
        for one in client.read_deployment_schedules(deployment):
            client.delete_deployment_schedule(deployment, one.id)
