"""``rlhf runs``, ``report``, ``logs`` and ``stop``: what became of a run, and its end."""

from typing import Annotated

import typer

from flows.cli_options import WORKSPACE, JsonOption, NewestRunArgument, RunArgument, WorkspaceOption

runs_app = typer.Typer(help="Runs: list, show, compare two.", no_args_is_help=True, rich_markup_mode=None)


@runs_app.command("list")
def runs_list(workspace: WorkspaceOption = WORKSPACE, json: JsonOption = False) -> None:
    """Every run, newest first, and how it ended."""
    from flows.commands.runs import runs_list_command

    runs_list_command(workspace, as_json=json)


@runs_app.command("show")
def runs_show(name: NewestRunArgument = None, workspace: WorkspaceOption = WORKSPACE, json: JsonOption = False) -> None:
    """A run's stages, gate, data and files."""
    from flows.commands.runs import runs_show_command

    runs_show_command(name, workspace, as_json=json)


@runs_app.command("diff")
def runs_diff(
    first: RunArgument, second: RunArgument, workspace: WorkspaceOption = WORKSPACE, json: JsonOption = False
) -> None:
    """What two runs differ in: settings, data, artifacts and metrics, with their intervals."""
    from flows.commands.runs import runs_diff_command

    runs_diff_command(first, second, workspace, as_json=json)


def report(name: NewestRunArgument = None, workspace: WorkspaceOption = WORKSPACE, json: JsonOption = False) -> None:
    """Says where a run's report is, and what it says in short."""
    from flows.commands.report import report_command

    report_command(name, workspace, as_json=json)


def logs(
    name: NewestRunArgument = None,
    workspace: WorkspaceOption = WORKSPACE,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends.")] = False,
    json: JsonOption = False,
) -> None:
    """Prints a run's log."""
    from flows.commands.runs import logs_command

    logs_command(name, workspace, follow=follow, as_json=json)


def stop(name: RunArgument, workspace: WorkspaceOption = WORKSPACE, json: JsonOption = False) -> None:
    """Ends a run under way, with a checkpoint. One of a deployment is cancelled."""
    from flows.commands.runs import stop_command

    stop_command(name, workspace, as_json=json)
