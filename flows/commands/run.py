"""`rlhf run`. It is light to start: a run that is all cache imports neither torch nor transformers."""

import time
from pathlib import Path

from alignment.errors import raise_faults
from flows.console import PlainConsole
from flows.failures import open_workspace
from flows.recipe_source import prepare
from flows.services import servers


def run_command(
    given: str, workspace: Path, overrides: list[str], *, only: str | None, start: str | None, refresh: list[str]
) -> int:
    """Runs a recipe and returns the exit code: 0, or 1 where the gate refused or a stage failed."""
    console = PlainConsole()
    began = time.monotonic()
    resolved = prepare(given, overrides)
    space = open_workspace(workspace)
    servers.quiet_environment(space)
    from flows.pipeline.recipe_servers import server_faults

    raise_faults(server_faults(resolved, space, only=only, start=start, refresh=refresh))
    from flows.pipeline.launch import checked, launch

    server = servers.begin(space, "prefect")  # starts while the recipe is checked
    checked(resolved, space)
    return launch(resolved, space, server, only, start, refresh, console, began)
