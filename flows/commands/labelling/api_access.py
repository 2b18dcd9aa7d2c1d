"""``rlhf raters token`` and ``rlhf raters webhook``: which programs may use the app, and which are told."""

import sys
from collections.abc import Sequence
from pathlib import Path

from flows.commands.rate import print_rows, raters_store


def token_create_command(
    workspace: Path, url: str | None, name: str, scopes: Sequence[str], account: str | None, days: int
) -> None:
    """Prints a new token, alone on standard output, and its id beside it on standard error."""
    from preference_ui.accounts.tokens import make_token

    with raters_store(workspace, url) as store:
        identifier, token = make_token(store, name, scopes, account=account, days=days, created_by="shell")
    print(token)
    print(f"shown this once; `rlhf raters token revoke {identifier}` ends it", file=sys.stderr)


def token_list_command(workspace: Path, url: str | None, *, as_json: bool) -> None:
    """Prints every token, but for what opens the door."""
    from preference_ui.accounts.tokens import list_tokens

    with raters_store(workspace, url) as store:
        found = list_tokens(store)
    print_rows(found, as_json=as_json)


def token_revoke_command(workspace: Path, url: str | None, identifier: str) -> None:
    """Ends a token."""
    from preference_ui.accounts.tokens import revoke_token

    with raters_store(workspace, url) as store:
        revoke_token(store, identifier, actor="shell")
    print(f"{identifier} is revoked")


def webhook_add_command(workspace: Path, url: str | None, address: str, events: Sequence[str]) -> None:
    """Prints the secret of a new webhook, alone on standard output, and its id beside it on standard error."""
    from preference_ui.webhooks.endpoints import add_webhook
    from preference_ui.webhooks.outbox import EVENTS

    with raters_store(workspace, url) as store:
        identifier, secret = add_webhook(store, address, events or EVENTS, actor="shell")
    print(secret)
    print(f"shown this once; `rlhf raters webhook remove {identifier}` ends it", file=sys.stderr)


def webhook_list_command(workspace: Path, url: str | None, *, as_json: bool) -> None:
    """Prints every webhook, but for its secret."""
    from preference_ui.webhooks.endpoints import list_webhooks

    with raters_store(workspace, url) as store:
        found = list_webhooks(store)
    print_rows(found, as_json=as_json)


def webhook_remove_command(workspace: Path, url: str | None, identifier: str) -> None:
    """Ends a webhook."""
    from preference_ui.webhooks.endpoints import remove_webhook

    with raters_store(workspace, url) as store:
        remove_webhook(store, identifier, actor="shell")
    print(f"{identifier} is told nothing more")


def webhook_retry_command(workspace: Path, url: str | None, identifier: str) -> None:
    """Has a webhook's deliveries tried from the first attempt on."""
    from preference_ui.webhooks.endpoints import retry_webhook

    with raters_store(workspace, url) as store:
        many = retry_webhook(store, identifier, actor="shell")
    print(f"{many} deliveries are tried again")
