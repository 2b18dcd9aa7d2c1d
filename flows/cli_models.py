"""What is done with versions: ``rlhf models``, ``generate``, ``chat``, ``serve`` and ``push``."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli_options import WORKSPACE, DraftOption, JsonOption, LookupOption, ModelArgument, WorkspaceOption, finite

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


def generate(
    model: ModelArgument,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="A prompt; may be repeated.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="A file of prompts instead.")] = None,
    workspace: WorkspaceOption = WORKSPACE,
    temperature: Annotated[float, typer.Option(min=0.0, callback=finite, help="0 is greedy.")] = 0.0,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 128,
    seed: int = 0,
    draft: DraftOption = None,
    prompt_lookup: LookupOption = None,
    json: JsonOption = False,
) -> None:
    """Answers prompts with a model version."""
    from flows.commands.chat import generate_command

    generate_command(
        model, prompt or [], prompts, workspace, temperature, max_new_tokens, seed,
        as_json=json, draft=draft, prompt_lookup=prompt_lookup,
    )  # fmt: skip


def chat(
    model: ModelArgument = "policy@champion",
    other: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="Another, to answer beside it.")] = None,
    workspace: WorkspaceOption = WORKSPACE,
    temperature: Annotated[float, typer.Option(min=0.0, callback=finite, help="0 is greedy.")] = 0.7,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
    draft: DraftOption = None,
    prompt_lookup: LookupOption = None,
) -> None:
    """Talks with a model version in the terminal, or with two side by side. /help lists what can be typed there."""
    from flows.commands.chat import chat_command

    references = [model] if other is None else [model, other]
    chat_command(references, workspace, temperature, max_new_tokens, draft=draft, prompt_lookup=prompt_lookup)


def serve(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="policy@champion, policy/3: a registered version.")],
    workspace: WorkspaceOption = WORKSPACE,
    host: str = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    key: Annotated[
        str | None, typer.Option(metavar="env:NAME|file:PATH", help="Where the key is; else RLHF_SERVE_KEY.")
    ] = None,
    log_prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Append answered prompts, redacted, to this .jsonl file.")
    ] = None,
) -> None:
    """Serves a version behind an OpenAI-compatible endpoint, and the next one when its alias moves, without a pause."""
    from flows.commands.versions.serve import serve_command

    serve_command(model, workspace, host, port, key, log_prompts)


def push(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="policy@champion, policy/3: a registered version.")],
    folder: Annotated[Path | None, typer.Argument(metavar="[FOLDER]", help="A new folder to push to.")] = None,
    hub: Annotated[
        str | None, typer.Option(metavar="ORGANISATION/NAME", help="A repository on a model hub instead.")
    ] = None,
    merged: Annotated[bool, typer.Option("--merged", help="With an adapter's whole weights beside it.")] = False,
    public: Annotated[bool, typer.Option("--public", help="A repository that is made is public.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Push it; without this it is only listed.")] = False,
    workspace: WorkspaceOption = WORKSPACE,
    json: JsonOption = False,
) -> None:
    """Lists what of a version would leave this machine, and with --yes pushes it to a folder or a hub."""
    from flows.commands.versions.push import push_command

    push_command(model, workspace, folder, hub, merged=merged, public=public, yes=yes, as_json=json)
