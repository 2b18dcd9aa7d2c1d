"""``rlhf models``: versions, and which of them is the champion."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli_options import WORKSPACE, JsonOption, ModelArgument, WorkspaceOption

models_app = typer.Typer(
    help="Model versions: list, show, promote, roll back.", no_args_is_help=True, rich_markup_mode=None
)


@models_app.command("list")
def models_list(workspace: WorkspaceOption = WORKSPACE, json: JsonOption = False) -> None:
    """Every registered version, with its aliases."""
    from flows.commands.models import models_list_command

    models_list_command(workspace, as_json=json)


@models_app.command("show")
def models_show(model: ModelArgument, workspace: WorkspaceOption = WORKSPACE, json: JsonOption = False) -> None:
    """A version with its whole lineage."""
    from flows.commands.models import models_show_command

    models_show_command(model, workspace, as_json=json)


@models_app.command("evaluate")
def models_evaluate(
    model: ModelArgument,
    tasks: Annotated[str, typer.Option(metavar="A,B", help="Tasks of lm-eval, by name.")],
    include_path: Annotated[Path | None, typer.Option(help="A folder with tasks of your own.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Examples of each task.")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 8,
    workspace: WorkspaceOption = WORKSPACE,
    json: JsonOption = False,
) -> None:
    """Runs lm-eval on a registered version and keeps the results with it."""
    from flows.commands.lm_eval import models_evaluate_command

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    models_evaluate_command(model, workspace, names, include_path, limit, batch_size, as_json=json)


@models_app.command("promote")
def models_promote(
    model: ModelArgument,
    workspace: WorkspaceOption = WORKSPACE,
    reason: Annotated[str, typer.Option(help="Why; it is kept with the version.")] = "",
    by: Annotated[str | None, typer.Option(help="Who says so; your account here if left out.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Although the gate refused it; needs --reason.")] = False,
) -> None:
    """Makes a version the champion: approves one that waits for a person, or brings an earlier one back."""
    from flows.commands.models import models_promote_command

    models_promote_command(model, workspace, reason, by, force=force)


@models_app.command("rollback")
def models_rollback(name: Annotated[str, typer.Argument()] = "policy", workspace: WorkspaceOption = WORKSPACE) -> None:
    """Gives the champion's place back to the version that had it before."""
    from flows.commands.models import models_rollback_command

    models_rollback_command(name, workspace)
