"""`rlhf deploy`."""

import json
import os
import re
from pathlib import Path

from alignment.errors import Fault, InputError, raise_faults
from flows.console import PlainConsole
from flows.failures import open_workspace
from flows.recipe_source import prepare
from flows.services import servers


def deploy_command(
    given: str,
    workspace: Path,
    overrides: list[str],
    *,
    cron: str | None,
    every: float | None,
    limits: list[str],
) -> None:
    """Serves a recipe: runs it on a schedule, after events, and whenever its raters' votes are ready.

    ``cron`` and ``every`` take the place of the recipe's own schedule; each of ``limits`` is ``name=slots``.
    """
    wanted = _limits(limits)
    clock = [f"deployment.cron={json.dumps(cron)}", "deployment.every=null"] if cron is not None else []
    clock += [f"deployment.every={every}", "deployment.cron=null"] if every is not None else []
    resolved = prepare(given, [*overrides, *clock])
    recipe = resolved.recipe
    space = open_workspace(workspace)
    servers.quiet_environment(space)
    from flows.pipeline.recipe_servers import server_faults

    raise_faults(server_faults(resolved, space))
    said = PlainConsole(stderr=True).print
    server = servers.wait(space, servers.begin(space, "prefect"), said)
    os.environ["PREFECT_API_URL"] = server.api
    from flows.deployment.serve import serve_recipe
    from flows.pipeline.concurrency_limit import limit_faults, set_limits
    from flows.pipeline.launch import checked

    checked(resolved, space)
    set_limits(wanted)
    if faults := limit_faults(recipe):
        raise InputError(faults)
    PlainConsole().print(f"serving {recipe.name}; its runs are at {server.url}")
    serve_recipe(str(resolved.path.resolve()), recipe, space, overrides, recipe.deployment)


def _limits(given: list[str]) -> dict[str, int]:
    """Limits of the command line, by name. Raises InputError with every one that is none."""
    found = [(one, re.fullmatch(r"([a-z][a-z0-9_-]{0,39})=(\d{1,5})", one)) for one in given]
    if wrong := [one for one, match in found if match is None]:
        raise InputError([Fault(f"{one!r} is no limit", "write --limit gpus=4", field="--limit") for one in wrong])
    return {match[1]: int(match[2]) for _one, match in found if match}
