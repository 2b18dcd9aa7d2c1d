"""``rlhf votes`` and ``rlhf raters``: votes in and out, and the people who cast them."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

import typer

from flows.cli_options import (
    WORKSPACE,
    AgreementOption,
    JsonOption,
    QueueOption,
    RaterOption,
    SinceOption,
    StoreOption,
    UntilOption,
    WorkspaceOption,
)

What = Literal["pairs", "thumbs", "votes", "demonstrations", "records", "arena", "arena_pairs"]
votes_app = typer.Typer(
    help="The raters' votes: queues, import, export, agreement.", no_args_is_help=True, rich_markup_mode=None
)


@votes_app.command("import")
def votes_import(
    file: Annotated[str, typer.Argument(help="Prompts with responses, pairs, or hub:ORGANISATION/NAME[:FILE].")],
    workspace: WorkspaceOption = WORKSPACE,
    store: StoreOption = None,
    votes_wanted: Annotated[int | None, typer.Option(min=1, help="Raters per comparison; the queue's, or 3.")] = None,
    queue: Annotated[str, typer.Option(help="Where they go; see `rlhf votes queues`.")] = "default",
    gold: Annotated[bool, typer.Option(help="The better answer is known: mixed in silently to test raters.")] = False,
    revision: Annotated[str | None, typer.Option(help="Of a hub's data set.")] = None,
) -> None:
    """Queues the comparisons of a file, or of a hub's data set, for the raters."""
    from flows.commands.votes import votes_import_command

    votes_import_command(workspace, store, file, votes_wanted, queue=queue, gold=gold, revision=revision)


@votes_app.command("export")
def votes_export(
    file: Annotated[Path, typer.Argument(help="Where to: .jsonl, or .parquet for pairs; a folder for records.")],
    workspace: WorkspaceOption = WORKSPACE,
    store: StoreOption = None,
    what: Annotated[What, typer.Option()] = "pairs",
    form: Annotated[Literal["messages", "text"], typer.Option(help="Of pairs.")] = "messages",
    rater: RaterOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    min_agreement: AgreementOption = 0.0,
    queue: QueueOption = None,
    hub: Annotated[str | None, typer.Option(metavar="ORGANISATION/NAME", help="Push it to this data set too.")] = None,
    public: Annotated[bool, typer.Option("--public", help="Of a new data set, which is private otherwise.")] = False,
    json: JsonOption = False,
) -> None:
    """Writes preference pairs, thumbs, votes, corrections, whole records, or the arena's talks."""
    from flows.commands.votes import votes_export_command

    chosen = (rater or [], since, until, min_agreement, queue)
    votes_export_command(workspace, store, file, what, form, chosen, as_json=json, hub=hub, public=public)


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
    from flows.commands.votes import votes_agreement_command

    votes_agreement_command(workspace, store, (rater or [], since, until, 0.0, queue), as_json=json)


@votes_app.command("queues")
def votes_queues(workspace: WorkspaceOption = WORKSPACE, store: StoreOption = None, json: JsonOption = False) -> None:
    """Every queue: how far it is, how long the rest takes, what it cost, and for whom it is."""
    from flows.commands.labelling.queues import votes_queues_command

    votes_queues_command(workspace, store, as_json=json)


@votes_app.command("queue")
def votes_queue(
    name: Annotated[str, typer.Argument(help="The queue; a new one may be named.")],
    workspace: WorkspaceOption = WORKSPACE,
    store: StoreOption = None,
    guidelines: Annotated[str | None, typer.Option(metavar="FILE", help="Its own, in Markdown; - for none.")] = None,
    criteria: Annotated[str | None, typer.Option(metavar="FILE", help="Scores, as JSON; - for none.")] = None,
    votes_wanted: Annotated[int | None, typer.Option(min=1, help="Of each comparison, also of those queued.")] = None,
    raters: Annotated[str | None, typer.Option(metavar="A,B", help="Who may rate; - for everybody.")] = None,
    priority: Annotated[int | None, typer.Option(help="The highest comes first.")] = None,
    deadline: Annotated[datetime | None, typer.Option(help="In UTC; then nothing more is handed out.")] = None,
    no_deadline: Annotated[bool, typer.Option("--no-deadline", help="Takes the deadline away.")] = False,
    is_open: Annotated[bool | None, typer.Option("--open/--close", help="Whether it hands out work.")] = None,
    json: JsonOption = False,
) -> None:
    """Shows a queue's settings, and changes those that are named."""
    from flows.commands.labelling.queues import QueueChange, votes_queue_command

    change = QueueChange(guidelines, criteria, votes_wanted, raters, priority, deadline, no_deadline, is_open)
    votes_queue_command(workspace, store, name, change, as_json=json)


raters_app = typer.Typer(help="The people who rate: invite, rescue.", no_args_is_help=True, rich_markup_mode=None)
NameArgument = Annotated[str, typer.Argument(help="The account's name.")]


@raters_app.command("list")
def raters_list(workspace: WorkspaceOption = WORKSPACE, store: StoreOption = None, json: JsonOption = False) -> None:
    """Every account: role, state, since when."""
    from flows.commands.rate import raters_list_command

    raters_list_command(workspace, store, as_json=json)


@raters_app.command("invite")
def raters_invite(
    workspace: WorkspaceOption = WORKSPACE,
    store: StoreOption = None,
    role: Annotated[Literal["rater", "administrator"], typer.Option()] = "rater",
    note: Annotated[str, typer.Option(help="For whom it is; kept in the trail.")] = "",
    public_url: Annotated[str | None, typer.Option(help="How raters reach the app: for the whole link.")] = None,
) -> None:
    """Prints a link that makes one account, within three days."""
    from flows.commands.rate import raters_invite_command

    raters_invite_command(workspace, store, role, note, public_url)


@raters_app.command("invitations")
def raters_invitations(
    workspace: WorkspaceOption = WORKSPACE,
    store: StoreOption = None,
    revoke: Annotated[str | None, typer.Option(metavar="ID", help="Has this one work no longer.")] = None,
    json: JsonOption = False,
) -> None:
    """The invitations that nobody has used yet."""
    from flows.commands.rate import raters_invitations_command

    raters_invitations_command(workspace, store, revoke, as_json=json)


@raters_app.command("password")
def raters_password(name: NameArgument, workspace: WorkspaceOption = WORKSPACE, store: StoreOption = None) -> None:
    """Asks for a new password of an account, twice, or reads it from standard input; closes the account's sessions."""
    from flows.commands.rate import raters_password_command

    raters_password_command(workspace, store, name)


@raters_app.command("unlock")
def raters_unlock(name: NameArgument, workspace: WorkspaceOption = WORKSPACE, store: StoreOption = None) -> None:
    """Lets an account sign in again that wrong passwords have locked."""
    from flows.commands.rate import raters_unlock_command

    raters_unlock_command(workspace, store, name)


@raters_app.command("report")
def raters_report(
    file: Annotated[Path, typer.Argument(help="Where to: .csv.")],
    workspace: WorkspaceOption = WORKSPACE,
    store: StoreOption = None,
    hourly_rate: Annotated[float | None, typer.Option(min=0, help="Pay for an hour; that of the settings.")] = None,
    idle_minutes: Annotated[float | None, typer.Option(min=0.1, help="Most minutes of work on one vote.")] = None,
) -> None:
    """Writes every rater's votes, active hours and pay in every queue."""
    from flows.commands.labelling.people import raters_report_command

    raters_report_command(workspace, store, file, hourly_rate, idle_minutes)


@raters_app.command("consents")
def raters_consents(
    file: Annotated[Path, typer.Argument(help="Where to: .csv.")],
    workspace: WorkspaceOption = WORKSPACE,
    store: StoreOption = None,
) -> None:
    """Writes what raters were asked before work, and what they said."""
    from flows.commands.labelling.people import raters_consents_command

    raters_consents_command(workspace, store, file)


@raters_app.command("link")
def raters_link(
    workspace: WorkspaceOption = WORKSPACE,
    store: StoreOption = None,
    places: Annotated[int, typer.Option(help="How many may join by it.")] = 10,
    parameter: Annotated[str, typer.Option(help="Under which the address says who comes.")] = "PROLIFIC_PID",
    completion_url: Annotated[str | None, typer.Option(help="Where a rater goes who is done.")] = None,
    note: Annotated[str, typer.Option(help="For whom it is; kept in the trail.")] = "",
    days: Annotated[float, typer.Option(help="How long it works.")] = 30,
    public_url: Annotated[str | None, typer.Option(help="How raters reach the app: for the whole link.")] = None,
) -> None:
    """Prints a link by which many may join, each with an id that another site gives them."""
    from flows.commands.labelling.people import raters_link_command

    raters_link_command(workspace, store, places, parameter, completion_url, note, days, public_url)


@raters_app.command("links")
def raters_links(
    workspace: WorkspaceOption = WORKSPACE,
    store: StoreOption = None,
    close: Annotated[str | None, typer.Option(metavar="ID", help="Has this one work no longer.")] = None,
    json: JsonOption = False,
) -> None:
    """The links that still work, and how many have come by each."""
    from flows.commands.labelling.people import raters_links_command

    raters_links_command(workspace, store, close, as_json=json)


token_app = typer.Typer(help="Tokens of the app's HTTP API.", no_args_is_help=True, rich_markup_mode=None)
raters_app.add_typer(token_app, name="token")


@token_app.command("create")
def token_create(
    name: Annotated[str, typer.Argument(help="What uses it; for the list and the trail.")],
    scope: Annotated[list[str], typer.Option(help="What it may do: queue, read or vote; the first two together.")],
    workspace: WorkspaceOption = WORKSPACE,
    store: StoreOption = None,
    account: Annotated[str | None, typer.Option(metavar="NAME", help="In whose name; `vote` needs one.")] = None,
    days: Annotated[int, typer.Option(min=1, max=3650, help="Until it ends.")] = 90,
) -> None:
    """Prints a new token, this once: it is stored as its hash."""
    from flows.commands.labelling.api_access import token_create_command

    token_create_command(workspace, store, name, scope, account, days)


@token_app.command("list")
def token_list(workspace: WorkspaceOption = WORKSPACE, store: StoreOption = None, json: JsonOption = False) -> None:
    """Every token: id, name, scopes, account, state, and when it was used."""
    from flows.commands.labelling.api_access import token_list_command

    token_list_command(workspace, store, as_json=json)


@token_app.command("revoke")
def token_revoke(
    identifier: Annotated[str, typer.Argument(metavar="ID", help="As `rlhf raters token list` has it.")],
    workspace: WorkspaceOption = WORKSPACE,
    store: StoreOption = None,
) -> None:
    """Ends a token at once."""
    from flows.commands.labelling.api_access import token_revoke_command

    token_revoke_command(workspace, store, identifier)


webhook_app = typer.Typer(help="Who else is told, signed.", no_args_is_help=True, rich_markup_mode=None)
raters_app.add_typer(webhook_app, name="webhook")
WebhookArgument = Annotated[str, typer.Argument(metavar="ID", help="As `rlhf raters webhook list` has it.")]


@webhook_app.command("add")
def webhook_add(
    url: Annotated[str, typer.Argument(help="Where to: https://host.example/path.")],
    workspace: WorkspaceOption = WORKSPACE,
    store: StoreOption = None,
    events: Annotated[
        str, typer.Option(help="Of what, with commas: vote.given, record.flagged, collection.ready; all if left out.")
    ] = "",
) -> None:
    """Prints the secret that signs, this once."""
    from flows.commands.labelling.api_access import webhook_add_command

    webhook_add_command(workspace, store, url, [name.strip() for name in events.split(",")] if events else [])


@webhook_app.command("list")
def webhook_list(workspace: WorkspaceOption = WORKSPACE, store: StoreOption = None, json: JsonOption = False) -> None:
    """Every webhook: events, what waits for it, what was given up, and when it last took something."""
    from flows.commands.labelling.api_access import webhook_list_command

    webhook_list_command(workspace, store, as_json=json)


@webhook_app.command("remove")
def webhook_remove(
    identifier: WebhookArgument, workspace: WorkspaceOption = WORKSPACE, store: StoreOption = None
) -> None:
    """Tells it nothing more, not of what waits for it either."""
    from flows.commands.labelling.api_access import webhook_remove_command

    webhook_remove_command(workspace, store, identifier)


@webhook_app.command("retry")
def webhook_retry(
    identifier: WebhookArgument, workspace: WorkspaceOption = WORKSPACE, store: StoreOption = None
) -> None:
    """Tries again what waits for it and what was given up, from the first attempt on."""
    from flows.commands.labelling.api_access import webhook_retry_command

    webhook_retry_command(workspace, store, identifier)
