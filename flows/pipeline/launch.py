"""From a checked recipe to the end of its run: the server, the display, the flow, the last words."""

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect.client.schemas.objects import State
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_RESULTS_LOCAL_STORAGE_PATH,
    get_current_settings,
    temporary_settings,
)
from rich.console import Console
from rich.text import Text

from alignment.cache_key import code_digest
from alignment.checks.recipe import check_recipe, placed
from alignment.digests import digest_of
from alignment.durable_files import file_digest, write_text
from alignment.errors import InputError, StageError
from alignment.evaluation.gate import GateVerdict
from alignment.recipe.recipe import Recipe
from alignment.recipe.resolved import ResolvedRecipe
from alignment.workspace import Workspace
from flows.command_lines import rlhf_line
from flows.console import PlainConsole, styled
from flows.failures import keep_traceback
from flows.monitoring.logs import to_the_dashboard
from flows.monitoring.progress import GuardedListener, listener
from flows.monitoring.terminal import Terminal, shown_stages
from flows.pipeline.environment import running_faults
from flows.pipeline.orchestration import address
from flows.pipeline.pipeline import check_start, run_pipeline
from flows.pipeline.run_state import RunRequest
from flows.runs import claim_run, keep_recipe
from flows.services import servers
from flows.services.guard import guarded
from flows.services.process_registration import ProcessRegistration, at_work
from flows.services.server_outbox import settle
from flows.shutdown import leaving_on_sigterm

CHECKED_KEPT = 99  # recipes that are remembered as good, beside the newest


def checked(resolved: ResolvedRecipe, workspace: Workspace) -> None:
    """Checks a recipe, unless these very settings, files and checks were found good before. Raises InputError."""
    if faults := running_faults(resolved.recipe):  # of the environment, which is no part of what was found good before
        raise InputError(placed(faults, resolved.path))
    if _identity(resolved) in _known(_passed(workspace)):
        return
    if faults := check_recipe(resolved, workspace):
        raise InputError(faults)
    found_good(resolved, workspace)


def found_good(resolved: ResolvedRecipe, workspace: Workspace) -> None:
    """Notes that these settings and files need no check any more."""
    passed, identity = _passed(workspace), _identity(resolved)
    known = [one for one in _known(passed) if one != identity]
    write_text(passed, json.dumps([*known[-CHECKED_KEPT:], identity]))


def _identity(resolved: ResolvedRecipe) -> str:
    """The digest of all that a check looks at, its own code included."""
    digests = {name: file_digest(file) for name, file in resolved.data.items() if file.is_file()}
    return digest_of([resolved.digest, digests, code_digest("alignment.checks.recipe"), _model_stamp(resolved.recipe)])


def _passed(workspace: Workspace) -> Path:
    return workspace.folder("services") / "checked.json"


def _known(path: Path) -> list[str]:
    try:
        return [str(one) for one in json.loads(path.read_text("utf-8"))]
    except (OSError, ValueError, TypeError):
        return []


def _model_stamp(recipe: Recipe) -> list[tuple[str, int, int]]:
    folder = Path(recipe.model.base)
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def launch(
    resolved: ResolvedRecipe,
    workspace: Workspace,
    server: servers.Service,
    only: str | None,
    start: str | None,
    refresh: list[str],
    console: Console,
    began: float,
) -> int:
    """Runs the flow and says how it ended. Returns the exit code."""
    check_start(resolved.recipe, only, start, refresh)  # a mistyped stage leaves no run
    name = claim_run(workspace, resolved.recipe.name)
    request = RunRequest(
        resolved=resolved, workspace=workspace.root, run=name, only=only, start=start, refresh=tuple(refresh)
    )
    keep_recipe(workspace.folder("runs", name) / "recipe.yaml", resolved, workspace)
    with console.status(Text("waiting for the Prefect server")):
        servers.wait(workspace, server, PlainConsole(stderr=True).print)
    settings: dict[Any, Any] = {PREFECT_RESULTS_LOCAL_STORAGE_PATH: workspace.folder("prefect", "results")}
    if get_current_settings().api.url is None:
        settings[PREFECT_API_URL] = server.api
    with (
        temporary_settings(settings),
        keeping_account(workspace.root),
        leaving_on_sigterm(),
        Terminal(shown_stages(resolved.recipe), console) as terminal,
    ):
        token = listener.set(GuardedListener(terminal))
        try:
            state = run_pipeline(request)
        finally:
            listener.reset(token)
    if state.name == "Failed":
        error = state.result(raise_on_failure=False)
        if isinstance(error, InputError):
            raise error
        if isinstance(error, Exception) and not isinstance(error, StageError):
            console.print(keep_traceback(error, workspace.root / "runs" / name))
    say_end(console, workspace.root / "runs" / name, server, state, time.monotonic() - began)
    return 0 if state.is_completed() else 1


@contextmanager
def keeping_account(root: Path) -> Iterator[ProcessRegistration]:
    """Around what a process does on Prefect's server: it is recorded and guarded, and at the end all is said.

    What processes said too little of that were killed before is said at the beginning.
    """
    logging.raiseExceptions = False  # a log that cannot be sent to a server that is away is no traceback
    to_the_dashboard()
    where = address(root)
    settle(root)
    with guarded(root), at_work(root, where["api"], ours=where["ours"]) as registration:
        try:
            yield registration
        finally:
            settle(root)


def say_end(console: Console, folder: Path, server: servers.Service, state: State[Any], seconds: float) -> None:
    """Where the report, the dashboard and the model are, and what to do next."""
    colours = {
        "Promoted": "green",
        "Waiting": "yellow",
        "AwaitingApproval": "yellow",
        "Refused": "red",
        "Failed": "red",
    }
    words = {"AwaitingApproval": "awaits approval"}
    word = words.get(state.name or "", (state.name or "completed").lower())
    colour = colours.get(state.name or "", "green")
    ended = f" in {seconds:.0f} s: {state.message or ''}"
    console.print(styled("\n", (folder.name, "bold"), " ", (word, colour), ended))
    space = folder.parents[1]

    def line(*command: str) -> str:
        return rlhf_line(*command, workspace=space, here=True)

    written = folder / "report.json"  # a run that was terminated, or had no room left, may not have got that far
    report = json.loads(written.read_text("utf-8")) if written.exists() else {}
    rows = [("report", str(folder / "report.html"))] if report else []
    rows.append(("dashboard", server.url))
    if gate := report.get("gate"):
        rows = [("gate", line) for line in GateVerdict.model_validate(gate).lines] + rows
    registered = report.get("registered")
    if registered:
        rows += [
            ("model", registered["folder"]),
            ("try it", line("chat", f"{registered['name']}/{registered['version']}")),
        ]
    if state.name == "Failed":
        rows.append(("what failed", line("logs", folder.name)))
    if server.pid is not None:
        rows.append(("stop dashboard", line("dashboard", "--stop")))
    for name, text in rows:
        console.print(f"{name:<15} {text}")
