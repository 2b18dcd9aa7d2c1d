"""What is done with a workspace as a whole: ``rlhf backup``, ``restore`` and ``gc``."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli_options import WORKSPACE, JsonOption, StoreOption, WorkspaceOption, finite


def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The backup to write: a tar file.")],
    workspace: WorkspaceOption = WORKSPACE,
    store: StoreOption = None,
    without: Annotated[
        list[str] | None, typer.Option(metavar="PART", help="Leave out votes, prefect or mlflow; may be repeated.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Writes the workspace into one file: artifacts, votes wherever they are, Prefect's and MLflow's databases."""
    from flows.commands.backup import backup_command

    backup_command(workspace, file, as_json=json, store=store, without=without or [])


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `rlhf backup` wrote.")],
    workspace: WorkspaceOption = WORKSPACE,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Makes a new workspace from a backup, every file checked; votes go into the raters' store that is named."""
    from flows.commands.backup import restore_command

    restore_command(file, workspace, as_json=json, store=store)


def gc(
    workspace: WorkspaceOption = WORKSPACE,
    runs: Annotated[int, typer.Option(min=0, help="Keep what this many of the newest runs refer to.")] = 10,
    days: Annotated[
        float, typer.Option(min=0, callback=finite, help="Keep unfinished stages younger than this.")
    ] = 7.0,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without this it is only listed.")] = False,
    json: JsonOption = False,
) -> None:
    """Lists the artifacts and unfinished stages that nothing refers to, and removes them with --yes."""
    from flows.commands.backup import gc_command

    gc_command(workspace, runs=runs, days=days, remove=yes, as_json=json)
