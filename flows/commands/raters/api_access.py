"""``rlhf raters token``: who may use the app's HTTP API, and for what."""

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
