"""``rlhf``: the command line. Exit 0: success; 1: the work failed or the gate refused; 2: the input is wrong; 143: told
to end (SIGTERM).

Nothing heavy is imported here: each command imports what it needs, so that ``rlhf --help`` answers at once.
"""

import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from alignment.faults import InputError, StageError
from flows.logs import set_up

app = typer.Typer(
    help="From raw prompts to a promoted, aligned model version.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,  # drawing boxes around the help takes longer than all the rest of it
)
models_app = typer.Typer(
    help="Model versions: list, show, promote, roll back.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(models_app, name="models")
votes_app = typer.Typer(
    help="The raters' votes: import, export, agreement.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(votes_app, name="votes")

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's file, or the name of a shipped one.")]
WorkspaceOption = Annotated[
    Path, typer.Option("--workspace", "-w", envvar="RLHF_WORKSPACE", help="Where everything is kept.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B.C=VALUE", help="Overrides a setting; may be repeated.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="policy@champion, policy/3, or a model's folder.")]
StoreOption = Annotated[
    str | None, typer.Option(envvar="RLHF_STORE", help="The raters' database; SQLite in the workspace if left out.")
]
RaterOption = Annotated[list[str] | None, typer.Option("--rater", metavar="NAME", help="Votes of these only.")]
SinceOption = Annotated[datetime | None, typer.Option(help="Votes from this time on, in UTC.")]
UntilOption = Annotated[datetime | None, typer.Option(help="Votes before this time, in UTC.")]
AgreementOption = Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of the votes that must agree on a pair.")]
QueueOption = Annotated[str | None, typer.Option(help="Votes of this queue only.")]
WORKSPACE = Path("workspace")
INTERRUPTED = 130  # typer's exit code for Ctrl-C
TERMINATED = 143  # by SIGTERM, as a shell says it


@app.command()
def check(
    recipe: RecipeArgument, workspace: WorkspaceOption = WORKSPACE, set_: SetOption = None, json: JsonOption = False
) -> None:
    """Finds everything wrong with a recipe, its data and its model, without training."""
    from flows.commands import check_command

    check_command(recipe, workspace, set_ or [], as_json=json)


@app.command()
def plan(
    recipe: RecipeArgument,
    workspace: WorkspaceOption = WORKSPACE,
    set_: SetOption = None,
    on: Annotated[list[str] | None, typer.Option(metavar="MACHINE", help="cpu, H100 …; may be repeated.")] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Measure this processor, for a second.")] = False,
    json: JsonOption = False,
) -> None:
    """Says what a recipe will take before it runs: memory, tokens, time and cost of each stage."""
    from flows.planning import plan_command

    plan_command(recipe, workspace, set_ or [], on or [], measure=measure, as_json=json)


@app.command()
def run(
    recipe: RecipeArgument,
    workspace: WorkspaceOption = WORKSPACE,
    set_: SetOption = None,
    only: Annotated[str | None, typer.Option(metavar="STAGE", help="Run this stage alone.")] = None,
    from_: Annotated[str | None, typer.Option("--from", metavar="STAGE", help="Run from this stage on.")] = None,
) -> None:
    """Runs a recipe, or goes on with it where it stopped."""
    from flows.commands import run_command

    raise typer.Exit(run_command(recipe, workspace, set_ or [], only=only, start=from_))


@app.command()
def report(
    name: Annotated[str | None, typer.Argument(metavar="RUN", help="A run's name; the newest if left out.")] = None,
    workspace: WorkspaceOption = WORKSPACE,
    json: JsonOption = False,
) -> None:
    """Says where a run's report is, and what it says in short."""
    from flows.commands import report_command

    report_command(name, workspace, as_json=json)


@app.command()
def dashboard(
    workspace: WorkspaceOption = WORKSPACE,
    stop: Annotated[bool, typer.Option("--stop", help="Stop the services instead.")] = False,
    json: JsonOption = False,
) -> None:
    """Starts or finds the Prefect server and the MLflow page, and prints their addresses."""
    from flows.commands import dashboard_command

    dashboard_command(workspace, stop=stop, as_json=json)


@app.command()
def up(
    recipes: Annotated[
        list[str] | None, typer.Argument(metavar="[RECIPE]...", help="Recipes to serve as well.")
    ] = None,
    workspace: WorkspaceOption = WORKSPACE,
    set_: SetOption = None,
    port: Annotated[list[str] | None, typer.Option(metavar="NAME=N", help="Of up, prefect, mlflow or app.")] = None,
) -> None:
    """Starts everything on this machine and looks after it: dashboard, registry, raters' app, and workers."""
    from flows.up import up_command

    up_command(recipes or [], workspace, set_ or [], port or [])


@app.command()
def generate(
    model: ModelArgument,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="A prompt; may be repeated.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="A file of prompts instead.")] = None,
    workspace: WorkspaceOption = WORKSPACE,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 128,
    seed: int = 0,
    json: JsonOption = False,
) -> None:
    """Answers prompts with a model version."""
    from flows.talk import generate_command

    generate_command(model, prompt or [], prompts, workspace, temperature, max_new_tokens, seed, as_json=json)


@app.command()
def chat(
    model: ModelArgument = "policy@champion",
    workspace: WorkspaceOption = WORKSPACE,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.7,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
) -> None:
    """Talks with a model version in the terminal."""
    from flows.talk import chat_command

    chat_command(model, workspace, temperature, max_new_tokens)


@app.command()
def deploy(
    recipe: RecipeArgument,
    workspace: WorkspaceOption = WORKSPACE,
    set_: SetOption = None,
    cron: Annotated[
        str | None, typer.Option(help="When to run it, such as '0 3 * * *'; else as the recipe says.")
    ] = None,
    every: Annotated[float | None, typer.Option(min=1, metavar="SECONDS", help="Run it so often instead.")] = None,
    limit: Annotated[
        list[str] | None, typer.Option(metavar="NAME=SLOTS", help="Makes the limit that stages take their GPUs from.")
    ] = None,
) -> None:
    """Serves a recipe: runs it on its schedule, after the events it names, and when its raters' votes are ready."""
    from flows.raters import deploy_command

    deploy_command(recipe, workspace, set_ or [], cron=cron, every=every, limits=limit or [])


@app.command()
def rate(
    workspace: WorkspaceOption = WORKSPACE,
    store: StoreOption = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    public_url: Annotated[str | None, typer.Option(help="How raters reach the app, behind a proxy.")] = None,
    arena: Annotated[
        tuple[str, str] | None, typer.Option(metavar="A B", help="Two versions to talk to, names hidden.")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of the arena's answers.")] = 0.7,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of each of the arena's answers.")] = 256,
) -> None:
    """Serves the app in which people rank responses, and with --arena talk to two versions at once."""
    from flows.raters import rate_command

    rate_command(workspace, store, host, port, public_url, arena, temperature, max_new_tokens)


@votes_app.command("import")
def votes_import(
    file: Annotated[Path, typer.Argument(help="Prompts with responses, or pairs in TRL's columns.")],
    workspace: WorkspaceOption = WORKSPACE,
    store: StoreOption = None,
    votes_wanted: Annotated[int, typer.Option(min=1, help="Raters per comparison.")] = 3,
    gold: Annotated[bool, typer.Option(help="The better answer is known: mixed in silently to test raters.")] = False,
) -> None:
    """Queues a file's comparisons for the raters."""
    from flows.raters import votes_import_command

    votes_import_command(workspace, store, file, votes_wanted, gold=gold)


@votes_app.command("export")
def votes_export(
    file: Annotated[Path, typer.Argument(help="Where to: .jsonl, or .parquet for pairs.")],
    workspace: WorkspaceOption = WORKSPACE,
    store: StoreOption = None,
    what: Annotated[Literal["pairs", "votes", "demonstrations", "arena", "arena_pairs"], typer.Option()] = "pairs",
    form: Annotated[Literal["messages", "text"], typer.Option(help="Of pairs.")] = "messages",
    rater: RaterOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    min_agreement: AgreementOption = 0.0,
    queue: QueueOption = None,
    json: JsonOption = False,
) -> None:
    """Writes preference pairs, the votes, the raters' corrections, or the arena's talks."""
    from flows.raters import votes_export_command

    chosen = (rater or [], since, until, min_agreement, queue)
    votes_export_command(workspace, store, file, what, form, chosen, as_json=json)


@votes_app.command("agreement")
def votes_agreement(
    workspace: WorkspaceOption = WORKSPACE,
    store: StoreOption = None,
    rater: RaterOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    queue: QueueOption = None,
    json: JsonOption = False,
) -> None:
    """How far the raters agree, with intervals."""
    from flows.raters import votes_agreement_command

    votes_agreement_command(workspace, store, (rater or [], since, until, 0.0, queue), as_json=json)


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The backup to write: a tar file.")],
    workspace: WorkspaceOption = WORKSPACE,
    json: JsonOption = False,
) -> None:
    """Writes the workspace, databases included, into one file."""
    from flows.keeping import backup_command

    backup_command(workspace, file, as_json=json)


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `rlhf backup` wrote.")],
    workspace: WorkspaceOption = WORKSPACE,
    json: JsonOption = False,
) -> None:
    """Makes a new workspace from a backup, every file checked."""
    from flows.keeping import restore_command

    restore_command(file, workspace, as_json=json)


@app.command()
def gc(
    workspace: WorkspaceOption = WORKSPACE,
    runs: Annotated[int, typer.Option(min=0, help="Keep what this many of the newest runs refer to.")] = 10,
    days: Annotated[float, typer.Option(min=0, help="Keep unfinished stages younger than this.")] = 7.0,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without this it is only listed.")] = False,
    json: JsonOption = False,
) -> None:
    """Lists the artifacts and unfinished stages that nothing refers to, and removes them with --yes."""
    from flows.keeping import gc_command

    gc_command(workspace, runs=runs, days=days, remove=yes, as_json=json)


@models_app.command("list")
def models_list(workspace: WorkspaceOption = WORKSPACE, json: JsonOption = False) -> None:
    """Every registered version, with its aliases."""
    from flows.commands import models_list_command

    models_list_command(workspace, as_json=json)


@models_app.command("show")
def models_show(model: ModelArgument, workspace: WorkspaceOption = WORKSPACE, json: JsonOption = False) -> None:
    """A version with its whole lineage."""
    from flows.commands import models_show_command

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
    from flows.evaluating import models_evaluate_command

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
    from flows.commands import models_promote_command

    models_promote_command(model, workspace, reason, by, force=force)


@models_app.command("rollback")
def models_rollback(name: Annotated[str, typer.Argument()] = "policy", workspace: WorkspaceOption = WORKSPACE) -> None:
    """Gives the champion's place back to the version that had it before."""
    from flows.commands import models_rollback_command

    models_rollback_command(name, workspace)


def main() -> NoReturn:
    """The entry point: a user's mistake is a line, not a traceback."""
    set_up()
    try:
        app()
    except InputError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    except StageError as error:
        print(f"rlhf: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except SystemExit as ended:
        if ended.code not in (INTERRUPTED, TERMINATED):
            raise
        print("\nstopped; the same command goes on where it stopped", file=sys.stderr)
        raise SystemExit(TERMINATED if ended.code == TERMINATED else 1) from None
    raise SystemExit(0)


if __name__ == "__main__":
    main()
