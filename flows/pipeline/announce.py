"""What the world is told of a run that has ended: notices to people, and the events that start other recipes."""

import logging
from pathlib import Path
from typing import Any

import httpx
from prefect.client.schemas.objects import FlowRun, State
from prefect.runtime import flow_run as running
from prefect.settings import get_current_settings

from alignment.durable_files import write_text
from alignment.errors import InputError
from alignment.recipe.deployment import Ending
from alignment.recipe.recipe import Recipe
from alignment.workspace import Workspace
from flows.monitoring.dashboard import link
from flows.monitoring.notifiers import News, notify
from flows.pipeline.register import Finish
from flows.recipe_source import prepare
from preference_ui.snapshots.prefect_events import send_event

_log = logging.getLogger(__name__)
ENDINGS: dict[str, Ending] = {"Promoted": "promoted", "Refused": "refused", "Waiting": "waiting"}


def tell(recipe: Recipe, run: str, report: Path, *, state: State[Any] | None, error: Exception | None = None) -> None:
    """Notifies whoever the recipe names of a run that ended in ``state``, or with ``error``."""
    ending: Ending = "failed"
    message = f"{type(error).__name__}: {error}"
    if state is not None:
        ending, message = ENDINGS.get(state.name or "", "completed"), state.message or ""
    news = News(ending, recipe.name, run, message, report=link(report), dashboard=dashboard(running.get_id()))
    notify(recipe.notify, news)


def dashboard(flow_run: str | None) -> str:
    """Where a run is shown; the server's address without the run where that is unknown."""
    url = get_current_settings().api.url
    base = str(url).removesuffix("/api") if url else ""
    return f"{base}/runs/flow-run/{flow_run}" if base and flow_run else base


def tell_of_the_end(flow: Any, flow_run: FlowRun, state: State[Any]) -> None:
    """A hook of the deployed flow: of a run that was cancelled or that died, its own process can say nothing."""
    given = flow_run.parameters
    del flow  # Prefect names it
    try:
        recipe = prepare(given["recipe"], given.get("overrides") or []).recipe
    except InputError:  # the recipe's file has gone or is broken since: nobody is named that could hear of it
        _log.exception("nobody hears that %s is %s", flow_run.name, state.name)
        return
    ending: Ending = "crashed" if state.is_crashed() else "cancelled"
    message = state.message or f"the run was {ending}; the next one goes on from the last checkpoint"
    notify(recipe.notify, News(ending, recipe.name, flow_run.name, message, dashboard=dashboard(str(flow_run.id))))


def announce(recipe: Recipe, finish: Finish, workspace: Workspace, run: str) -> None:
    """Sends the event of a new champion or of a refusal, once for each version: other recipes may wait for it.

    The mark that it was sent is written afterwards, so a run that dies in between sends it again. An event that the
    server does not take stays unsent until the next run comes to the same version.
    """
    mark = workspace.folder("services", "announced") / f"{finish.name}-v{finish.version}"
    if mark.exists():
        return
    promoted = finish.verdict.passed
    if promoted and finish.alias != "champion":
        return  # it was champion before, and another is now
    resource = f"rlhf.models.{finish.name}" if promoted else f"rlhf.recipes.{recipe.name}"
    payload = {"recipe": recipe.name, "run": run, "model": finish.name, "version": finish.version}
    try:
        send_event(CHAMPION if promoted else REFUSED, resource, {"rlhf.recipe": recipe.name}, payload)
    except httpx.HTTPError as error:
        _log.warning("that %s v%s was %s is not announced: %s", finish.name, finish.version,
                     "promoted" if promoted else "refused", error)  # fmt: skip
        return
    write_text(mark, run + "\n")


CHAMPION, REFUSED = "champion.promoted", "gate.refused"  # events; preference_ui.snapshots.collections has the third
