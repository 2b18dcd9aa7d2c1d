"""`rlhf run`. It is light to start: a run that is all cache imports neither torch nor transformers."""

import time
from pathlib import Path

from alignment.workspace import Workspace
from flows.monitoring.terminal import SteadyConsole
from flows.recipe_source import prepare
from flows.runs import next_run_name
from flows.services import servers


def run_command(given: str, workspace: Path, overrides: list[str], *, only: str | None, start: str | None) -> int:
    """Runs a recipe and returns the exit code: 0, or 1 where the gate refused or a stage failed."""
    console = SteadyConsole()
    began = time.monotonic()
    resolved = prepare(given, overrides)
    space = Workspace(workspace.resolve())
    servers.quiet_environment(space)
    servers.reach_named_servers(space)
    from flows.pipeline.launch import checked, launch

    server = servers.begin(space, "prefect")  # starts while the recipe is checked
    checked(resolved, space)
    name = next_run_name(space, resolved.recipe.name)
    return launch(resolved, space, server, name, only, start, console, began)
