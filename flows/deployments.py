"""A recipe that runs by itself: on a schedule, and whenever the raters' votes for it are enough.

``rlhf deploy`` serves one: a process that waits for work and runs each in a process of its own. What the event
``preferences.ready`` starts is the very recipe that waited, on the very snapshot that the event names. Where that run
promotes a version, the next round begins at once: the new version answers the prompts, and its answers are queued.
Where its gate asks for a person, the run is suspended until one has answered (:mod:`flows.approval`).
"""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.deployments import run_deployment
from prefect.events import DeploymentEventTrigger
from prefect.exceptions import TerminationSignal
from prefect.runner import Runner

from alignment.loading import dump_recipe, resolve_data, with_absolute_data
from alignment.recipe import HumanPreferencesStage, Recipe
from alignment.workspace import Workspace, write_text
from flows.approval import ask, asked_before, question
from flows.collect import heard, queue_prefix, unheard, waiting_recipe
from flows.commands import next_run_name, prepare
from flows.launch import checked
from flows.pipeline import RunRequest, pipeline
from preference_ui.collecting import EVENT


@flow(name="recipe", persist_result=False, validate_parameters=False)
def recipe_flow(
    recipe: str, workspace: str, overrides: list[str] | None = None, queue: str = "", digest: str = ""
) -> State[Any]:
    """Runs a recipe as it is on the disk now; for a ``queue`` that is ready, the recipe that waited for its votes."""
    space = Workspace(Path(workspace))
    if (asked := asked_before(space)) is not None:
        loaded, path = prepare(str(asked.recipe), [])
        return _follow(loaded, path, space, ask(space, asked))
    waited = waiting_recipe(space, queue) if queue else None
    if waited is not None and waited.exists():
        loaded, path = prepare(str(waited), [])
    else:
        loaded, path = prepare(recipe, overrides or [])
    name, state = _run(loaded, path, space, {queue: digest} if queue else {})
    if queue and (state.is_completed() or state.name == "Refused"):
        write_text(heard(space, queue), digest + "\n")
    if state.name == "AwaitingApproval" and (asked := question(space, loaded, name)) is not None:
        state = ask(space, asked)
    return _follow(loaded, path, space, state)


def _follow(recipe: Recipe, path: Path, space: Workspace, state: State[Any]) -> State[Any]:
    """Begins the next round after a promotion. Returns the state of the round that ended."""
    following = _next_round(recipe, path, space, state)
    if following is not None:
        _run(following, path, space, {})
    return state


def _run(recipe: Recipe, path: Path, space: Workspace, ready: dict[str, str]) -> tuple[str, State[Any]]:
    """Runs a recipe under the next free name. Returns the name and the final state."""
    checked(recipe, path, space)
    name = next_run_name(space, recipe.name)
    data = resolve_data(recipe, path)
    write_text(space.folder("runs", name) / "recipe.yaml", dump_recipe(with_absolute_data(recipe, data)))
    request = RunRequest(recipe=recipe, data=data, workspace=space.root, run=name, ready=ready)
    state: State[Any] = pipeline(request, return_state=True)
    return name, state


def _next_round(recipe: Recipe, path: Path, space: Workspace, state: State[Any]) -> Recipe | None:
    """The recipe with the new champion as its base; None where there is no new one, or it cannot be a base."""
    if state.name != "Promoted" or not any(isinstance(one, HumanPreferencesStage) for one in recipe.stages.values()):
        return None
    from alignment.registry import find

    folder = Path(find(space, f"{recipe.model.registered_name}@champion").folder)
    weights = folder / "merged" if (folder / "merged").is_dir() else folder
    if (weights / "adapter_config.json").exists():
        return None  # an adapter stands on a base and is none: the recipe's gate says `merge: false`
    model = recipe.model.model_copy(update={"base": str(weights), "revision": None})
    return with_absolute_data(recipe, resolve_data(recipe, path)).model_copy(update={"model": model})


def trigger(recipe: Recipe) -> DeploymentEventTrigger:
    """Starts a run when a queue of this recipe is ready, with the queue and the snapshot's digest as parameters."""

    def said(name: str) -> dict[str, str]:
        return {"__prefect_kind": "jinja", "template": f"{{{{ event.payload.{name} }}}}"}

    return DeploymentEventTrigger(
        name=f"{recipe.name}: the votes are ready",
        expect={EVENT},
        match={"prefect.resource.id": f"rlhf.preferences.{queue_prefix(recipe)}*"},
        parameters={"queue": said("queue"), "digest": said("digest")},
    )


def serve_recipe(given: str, recipe: Recipe, space: Workspace, overrides: list[str], cron: str | None) -> None:
    """Serves the deployment until it is stopped, and begins with the votes that were ready while nobody listened."""
    parameters = {"recipe": given, "workspace": str(space.root), "overrides": overrides}
    runner = Runner(name=recipe.name, limit=1)
    runner.add_flow(
        recipe_flow, name=recipe.name, cron=cron, triggers=[trigger(recipe)], parameters=parameters,
        description=recipe.description, tags=["rlhf"],
    )  # fmt: skip
    for queue, digest in unheard(recipe, space).items():  # from here on the trigger hears them
        missed = {**parameters, "queue": queue, "digest": digest}
        run_deployment(f"{recipe_flow.name}/{recipe.name}", parameters=missed, timeout=0, as_subflow=False)
    with contextlib.suppress(KeyboardInterrupt, TerminationSignal):
        asyncio.run(runner.start())
