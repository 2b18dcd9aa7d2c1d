"""What the world is told of a run that has ended: notices to people, and the events that start other recipes."""

import contextlib
import logging
import os
from pathlib import Path
from typing import Any

from prefect.client.schemas.objects import FlowRun, State
from prefect.runtime import flow_run as running

from alignment.errors import InputError
from alignment.recipe.deployment import Ending
from alignment.recipe.recipe import Recipe
from alignment.workspace import Workspace
from flows.monitoring.links import report_place, run_link
from flows.monitoring.notifiers import News, notify
from flows.pipeline.orchestration import address
from flows.pipeline.register import Finish
from flows.recipe_source import prepare
from flows.services.server_outbox import ServerRequest, deliver, post
from preference_ui.snapshots.prefect_events import event_body

_log = logging.getLogger(__name__)
CHAMPION, REFUSED = "champion.promoted", "gate.refused"  # events; preference_ui.snapshots.collections has the third
ENDINGS: dict[str, Ending] = {"Promoted": "promoted", "Refused": "refused", "Waiting": "waiting"}


def tell(
    recipe: Recipe,
    run: str,
    report: Path,
    *,
    state: State[Any] | None,
    error: Exception | None = None,
    finish: Finish | None = None,
    workspace: Workspace | None = None,
) -> None:
    """Notifies whoever the recipe names of a run that ended in ``state``, or with ``error``.

    What the gate decided is news once for each version: a run that only finds it in the cache again says nothing.
    """
    ending: Ending = "failed"
    message = f"{type(error).__name__}: {error}"
    if state is not None:
        ending, message = ENDINGS.get(state.name or "", "completed"), state.message or ""
    news = News(ending, recipe.name, run, message, report=report_place(report), dashboard=run_link(running.get_id()))
    if finish is None or workspace is None or ending not in ("promoted", "refused"):
        notify(recipe.notify, news)
        return
    mark = _announced(workspace) / f"{finish.name}-v{finish.version}-{ending}.told"
    if not _claim(mark):
        return
    told = notify(recipe.notify, news)
    if told and not any(told.values()):
        mark.unlink(missing_ok=True)  # nobody has heard of it: the next run says it again


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
    notify(recipe.notify, News(ending, recipe.name, flow_run.name, message, dashboard=run_link(str(flow_run.id))))


def announce(recipe: Recipe, finish: Finish, workspace: Workspace, run: str) -> None:
    """Sends the event of a new champion or of a refusal, once for each version: other recipes may wait for it.

    It is written down before it is sent, and the mark that it was sent afterwards: a server that is away gets it when
    it is back, and for a run that dies in between the next command sends it.
    """
    mark = _announced(workspace) / f"{finish.name}-v{finish.version}"
    if mark.exists():
        return
    promoted = finish.verdict.passed
    if promoted and finish.alias != "champion":
        return  # it was champion before, and another is now
    resource = f"rlhf.models.{finish.name}" if promoted else f"rlhf.recipes.{recipe.name}"
    payload = {"recipe": recipe.name, "run": run, "model": finish.name, "version": finish.version}
    body = event_body(CHAMPION if promoted else REFUSED, resource, {"rlhf.recipe": recipe.name}, payload)
    post(
        workspace.root,
        ServerRequest("POST", "/events", [body], mark=str(mark), text=run + "\n", **address(workspace.root)),
    )
    if deliver(workspace.root):
        _log.warning("that %s was %s waits for the server", finish.reference, "promoted" if promoted else "refused")


def _announced(workspace: Workspace) -> Path:
    return workspace.folder("services", "announced")


def _claim(mark: Path) -> bool:
    """Makes a mark, unless it is there: of several processes one alone makes it."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        return True
    return False
