"""``rlhf``: the command line. Exit 0: success; 1: the work failed or the gate refused; 2: the input is wrong; 143: told
to end (SIGTERM).

Nothing heavy is imported here: each command imports what it needs, so that ``rlhf --help`` answers at once.
"""

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from alignment.errors import InputError, StageError
from alignment.plain_text import indented, printable
from flows.cli_models import chat, generate, models_app, push, serve
from flows.cli_options import (
    EMBEDDED,
    WORKSPACE,
    JsonOption,
    RecipeArgument,
    SetOption,
    StoreOption,
    WorkspaceOption,
    finite,
)
from flows.cli_runs import logs, report, runs_app, stop
from flows.cli_votes import raters_app, votes_app
from flows.cli_workspace import backup, gc, restore
from flows.failures import explain, keep_traceback
from flows.monitoring.logs import set_up
from flows.shutdown import end_within

app = typer.Typer(
    help="From raw prompts to a promoted, aligned model version.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # drawing boxes around the help takes longer than all the rest of it
)
app.add_typer(models_app, name="models")
app.add_typer(votes_app, name="votes")
app.add_typer(raters_app, name="raters")
app.add_typer(runs_app, name="runs")

DISTRIBUTION = "rlhf-flows"
INTERRUPTED = 130  # typer's exit code for Ctrl-C
TERMINATED = 143  # by SIGTERM, as a shell says it
STOPPED_SECONDS = 15.0  # for what Prefect and Ray put in order as Python ends


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"{DISTRIBUTION} {version(DISTRIBUTION)}")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """From raw prompts to a promoted, aligned model version."""


@app.command()
def init(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the recipe: it is written to NAME.yaml here.")],
    model: Annotated[str, typer.Option(help="A folder, a hub name, or embedded:smollm2-135m.")] = EMBEDDED,
    prompts: Annotated[Path | None, typer.Option(metavar="FILE", help="What the model is to answer.")] = None,
    demonstrations: Annotated[Path | None, typer.Option(metavar="FILE", help="Good answers to learn from.")] = None,
    preferences: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Pairs of answers: chosen, rejected.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Writes a commented recipe with your model and data in it. Without data it brings small ones."""
    from flows.commands.init import init_command

    init_command(name, model, prompts, demonstrations, preferences, as_json=json)


@app.command()
def check(
    recipe: RecipeArgument, workspace: WorkspaceOption = WORKSPACE, set_: SetOption = None, json: JsonOption = False
) -> None:
    """Finds everything wrong with a recipe, its data and its model, without training."""
    from flows.commands.check import check_command

    check_command(recipe, workspace, set_ or [], as_json=json)


@app.command()
def schema() -> None:
    """Prints the JSON Schema of recipes, by which an editor completes and checks one."""
    from alignment.checks.schema import schema_text

    print(schema_text(), end="")


@app.command()
def plan(
    recipe: RecipeArgument,
    workspace: WorkspaceOption = WORKSPACE,
    set_: SetOption = None,
    on: Annotated[list[str] | None, typer.Option(metavar="MACHINE", help="cpu, H100 …; may be repeated.")] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Measure this processor, for a second.")] = False,
    hours: Annotated[
        float | None, typer.Option(metavar="H", min=0.01, help="What H hours of pretraining are best spent on.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Says what a recipe will take: memory, tokens, time, cost. And what of it is in the cache."""
    from flows.commands.plan import plan_command

    plan_command(recipe, workspace, set_ or [], on or [], measure=measure, hours=hours, as_json=json)


@app.command()
def run(
    recipe: RecipeArgument,
    workspace: WorkspaceOption = WORKSPACE,
    set_: SetOption = None,
    only: Annotated[str | None, typer.Option(metavar="STAGE", help="Run this stage alone.")] = None,
    from_: Annotated[str | None, typer.Option("--from", metavar="STAGE", help="Run from this stage on.")] = None,
    refresh: Annotated[
        list[str] | None,
        typer.Option(metavar="STAGE", help="Make this stage anew although it is in the cache; may be repeated."),
    ] = None,
) -> None:
    """Runs a recipe, or goes on with it where it stopped."""
    from flows.commands.run import run_command

    raise typer.Exit(run_command(recipe, workspace, set_ or [], only=only, start=from_, refresh=refresh or []))


@app.command()
def sweep(
    recipe: RecipeArgument,
    over: Annotated[
        list[str] | None,
        typer.Option(metavar="A.B.C=V1,V2,…", help="A setting and its values; several make a grid."),
    ] = None,
    workspace: WorkspaceOption = WORKSPACE,
    set_: SetOption = None,
    seeds: Annotated[int, typer.Option(min=1, max=99, metavar="N", help="Train each variant with N seeds.")] = 1,
    by: Annotated[
        str | None, typer.Option(metavar="METRIC", help="Compare by this: win_rate.base.rubric, reward.NAME.")
    ] = None,
    keep_all: Annotated[bool, typer.Option("--keep-all", help="Stop no clear loser early.")] = False,
    parallel: Annotated[
        int | None, typer.Option(min=1, max=99, metavar="N", help="Runs at once; else as many as there are GPUs for.")
    ] = None,
) -> None:
    """Trains variants of a recipe, compares them on held-out prompts, and promotes none of them."""
    from flows.commands.sweep import sweep_command

    raise typer.Exit(
        sweep_command(
            recipe, workspace, set_ or [], over or [], seeds=seeds, by=by, keep_all=keep_all, parallel=parallel
        )
    )


for command in (logs, stop, report):  # in the order of the help
    app.command()(command)


@app.command()
def dashboard(
    workspace: WorkspaceOption = WORKSPACE,
    stop: Annotated[bool, typer.Option("--stop", help="Stop the services instead.")] = False,
    json: JsonOption = False,
) -> None:
    """Starts or finds the Prefect server and the MLflow page, and prints their addresses."""
    from flows.commands.report import dashboard_command

    dashboard_command(workspace, stop=stop, as_json=json)


@app.command()
def up(
    recipes: Annotated[
        list[str] | None, typer.Argument(metavar="[RECIPE]...", help="Recipes to serve as well.")
    ] = None,
    workspace: WorkspaceOption = WORKSPACE,
    set_: SetOption = None,
    port: Annotated[
        list[str] | None, typer.Option(metavar="NAME=N", help="Of up, prefect, mlflow, app or serve.")
    ] = None,
    served: Annotated[
        str | None, typer.Option("--serve", metavar="MODEL", help="A version to serve as well: policy@champion.")
    ] = None,
) -> None:
    """Starts everything on this machine and looks after it: dashboard, registry, raters' app, and workers."""
    from flows.commands.up import up_command

    up_command(recipes or [], workspace, set_ or [], port or [], served)


app.command()(generate)
app.command()(chat)


@app.command()
def deploy(
    recipe: RecipeArgument,
    workspace: WorkspaceOption = WORKSPACE,
    set_: SetOption = None,
    cron: Annotated[
        str | None, typer.Option(help="When to run it, such as '0 3 * * *'; else as the recipe says.")
    ] = None,
    every: Annotated[
        float | None, typer.Option(min=1, callback=finite, metavar="SECONDS", help="Run it so often instead.")
    ] = None,
    limit: Annotated[
        list[str] | None, typer.Option(metavar="NAME=SLOTS", help="Makes the limit that stages take their GPUs from.")
    ] = None,
) -> None:
    """Serves a recipe: runs it on its schedule, after the events it names, and when its raters' votes are ready."""
    from flows.commands.deploy import deploy_command

    deploy_command(recipe, workspace, set_ or [], cron=cron, every=every, limits=limit or [])


@app.command()
def rate(
    workspace: WorkspaceOption = WORKSPACE,
    store: StoreOption = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    public_url: Annotated[str | None, typer.Option(help="How raters reach the app, behind a proxy.")] = None,
    trusted_proxy: Annotated[
        list[str] | None,
        typer.Option(metavar="ADDRESS", help="Of a proxy, a network, or `private`; may be repeated."),
    ] = None,
    arena: Annotated[
        tuple[str, str] | None, typer.Option(metavar="A B", help="Two versions to talk to, names hidden.")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0.0, callback=finite, help="Of the arena's answers.")] = 0.7,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of each of the arena's answers.")] = 256,
) -> None:
    """Serves the app in which people rank responses, and with --arena talk to two versions at once."""
    from flows.commands.rate import rate_command

    rate_command(
        workspace, store, host, port, public_url, arena, temperature, max_new_tokens, proxies=trusted_proxy or []
    )


app.command()(serve)
app.command()(push)
app.command()(backup)
app.command()(restore)
app.command()(gc)


def _say(text: str) -> None:
    """Writes to standard error what others may have a part in: names, values, answers."""
    print(printable(text), file=sys.stderr)


def main() -> NoReturn:
    """The entry point: a user's mistake is a line, not a traceback."""
    set_up()
    try:
        app()
    except InputError as error:
        _say("\n".join(map(str, error.faults)))
        raise SystemExit(2) from None
    except StageError as error:
        _say(f"rlhf: {indented(str(error))}")
        raise SystemExit(1) from None
    except BrokenPipeError:  # who read the output has enough of it
        sys.stderr.close()
        raise SystemExit(1) from None
    except Exception as error:
        line, code = explain(error)
        _say(f"rlhf: {line}; {keep_traceback(error)}")
        raise SystemExit(code) from None
    except SystemExit as ended:
        if ended.code not in (INTERRUPTED, TERMINATED):
            raise
        print("\nstopped; the same command goes on where it stopped", file=sys.stderr)
        code = TERMINATED if ended.code == TERMINATED else 1
        end_within(STOPPED_SECONDS, code)
        raise SystemExit(code) from None
    raise SystemExit(0)


if __name__ == "__main__":
    main()
