"""`rlhf models list`, `show`, `promote` and `rollback`."""

import getpass
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from alignment.workspace import Workspace
from flows.console import PlainConsole, print_json, styled
from flows.failures import open_workspace
from flows.services import servers
from flows.services.named_servers import require_named

if TYPE_CHECKING:
    from alignment.registry import RegisteredVersion


def models_list_command(workspace: Path, *, as_json: bool) -> None:
    """Every registered version, newest first."""
    space = open_workspace(workspace)
    servers.quiet_environment(space)
    require_named(space, "mlflow")
    from alignment.registry import list_versions

    versions = list_versions(space)
    if as_json:
        print(json.dumps([version.model_dump(mode="json") for version in versions], indent=2))
        return
    table = Table("version", "aliases", "gate", "run", "candidate", "registered", box=None)
    for version in versions:
        table.add_row(
            str(version), ", ".join(version.aliases), _gate_word(version), version.run,
            str(version.candidate), f"{version.registered:%Y-%m-%d %H:%M}",
        )  # fmt: skip
    PlainConsole().print(table if versions else "no version is registered yet: run a recipe with a gate")


def _gate_word(version: "RegisteredVersion") -> str:
    """What the gate, and the person it may ask, said of a version."""
    if version.waits:
        return "waits for approval"
    return "passed" if version.passed else "refused"


def models_show_command(reference: str, workspace: Path, *, as_json: bool) -> None:
    """One version: where it is, what it was made of, and whether all of that is still as it was."""
    space = open_workspace(workspace)
    servers.quiet_environment(space)
    require_named(space, "mlflow")
    from alignment.registry import show

    details = show(space, reference)
    if as_json:
        print_json(details.model_dump_json(indent=2))
        return
    console = PlainConsole()
    version = details.version
    console.print(styled((str(version), "bold"), f"  {', '.join(version.aliases)}\nfolder   {version.folder}"))
    console.print(f"run      {version.run} (recipe {version.recipe} {version.recipe_digest[:12]})")
    console.print(
        f"intact   {'yes' if details.intact else 'no: ' + '; '.join(f'{k}: {v}' for k, v in details.problems.items())}"
    )
    if details.record:
        for line in details.record.verdict.lines:
            console.print(f"gate     {line}")
        for node in details.record.lineage.nodes:
            console.print(f"lineage  {node}")
    for change in details.history:
        if change.version == version.version:
            console.print(f"champion {change.at:%Y-%m-%d %H:%M} {change.why}")
    for found in details.tasks:
        for task, figures in found.results.items():
            words = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
            console.print(f"lm-eval  {task} ({found.n.get(task, 0)} examples): {words}")


def models_promote_command(reference: str, workspace: Path, reason: str, by: str | None, *, force: bool) -> None:
    """Makes a version the champion; who did it and why is kept with the version."""
    space = open_workspace(workspace)
    servers.quiet_environment(space)
    require_named(space, "mlflow")
    from alignment.registry import promote

    version = promote(space, reference, despite_gate=force, by=_account() if by is None else by, reason=reason)
    PlainConsole().print(f"{version} is the champion")
    _announce(space, version)


def _account() -> str:
    """Who gives commands here; nobody where the machine does not say, as in a container."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


def models_rollback_command(name: str, workspace: Path) -> None:
    """Makes the champion before this one the champion again."""
    space = open_workspace(workspace)
    servers.quiet_environment(space)
    require_named(space, "mlflow")
    from alignment.registry import rollback

    version = rollback(space, name)
    PlainConsole().print(f"{version} is the champion again")
    _announce(space, version)


def _announce(space: Workspace, version: "RegisteredVersion") -> None:
    """Tells deployments that wait for a new champion of one that a person chose, where a server runs."""
    server = servers.find(space, "prefect")
    if server is None:
        return
    os.environ.setdefault("PREFECT_API_URL", server.api)
    from flows.pipeline.announce import CHAMPION
    from preference_ui.snapshots.prefect_events import send_event

    payload = {"model": version.name, "version": version.version}
    send_event(CHAMPION, f"rlhf.models.{version.name}", {"rlhf.recipe": "by hand"}, payload)
