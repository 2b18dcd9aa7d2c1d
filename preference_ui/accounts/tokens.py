"""Tokens of the HTTP API: what a program shows instead of a password, for some scopes and some time.

A token is shown once and stored as its SHA-256. One that votes does so in the name of an account and can do nothing
else: whoever reads records sees which model wrote an answer, and would vote no longer blind.
"""

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, get_args

from sqlalchemy import Connection, Row, bindparam, insert, select, update

from preference_ui.accounts import throttle
from preference_ui.accounts.auth import SEEN_EVERY, digest
from preference_ui.store.errors import Refusal
from preference_ui.store.schema import accounts, tokens
from preference_ui.store.store import Store, now, record

Scope = Literal["queue", "read", "vote"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
PREFIX = "rlhf_"  # by which programs that look for leaked secrets can tell one
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,39}")
LIFE_DAYS = 90
LONGEST_DAYS = 3650
DOOR = "/api"  # the "name" at which wrong tokens are counted; no account can be called so
_NEWEST_FIRST = (tokens.c.created.desc(), tokens.c.id)
_TOKEN = (
    select(
        tokens.c.id, tokens.c.name, tokens.c.scopes, tokens.c.account_id, tokens.c.expires, tokens.c.used,
        tokens.c.revoked, accounts.c.name.label("account"), accounts.c.role, accounts.c.state,
        accounts.c.guidelines_read,
    )
    .select_from(tokens.outerjoin(accounts, tokens.c.account_id == accounts.c.id))
    .where(tokens.c.token_hash == bindparam("token"))
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Bearer:
    """Who shows a token that holds. ``account`` fields are None where it speaks in no account's name."""

    id: str
    name: str
    scopes: frozenset[str]
    account_id: str | None = None
    account: str | None = None
    role: str | None = None
    state: str | None = None
    guidelines_read: int = 0

    @property
    def actor(self) -> str:
        """The name in the audit trail. No account has a colon in its name."""
        return f"token:{self.name}"


def make_token(
    store: Store,
    name: str,
    scopes: Sequence[str],
    *,
    account: str | None = None,
    days: int = LIFE_DAYS,
    created_by: str,
) -> tuple[str, str]:
    """Makes a token that holds for so many days. Returns its id, and the token, which is stored nowhere.

    Raises Refusal for a bad name, unknown scopes, ``vote`` beside another scope or without an ``account``, and an
    account that is not there or, for the other scopes, is no administrator's.
    """
    wanted = _checked(name, scopes, days)
    if "vote" in wanted and account is None:
        raise Refusal("account", "A token that votes needs the account in whose name it does so.")
    token, identifier, moment = f"{PREFIX}{secrets.token_urlsafe(32)}", secrets.token_hex(6), now()
    with store.write() as connection:
        owner = None if account is None else _owner(connection, account, wanted)
        values = {"id": identifier, "token_hash": digest(token), "name": name, "scopes": wanted, "created": moment,
                  "created_by": created_by, "expires": moment + timedelta(days=days), "account_id": owner}  # fmt: skip
        connection.execute(insert(tokens).values(values))
        detail = {"name": name, "scopes": wanted, "account": account, "days": days}
        record(connection, created_by, "token.create", identifier, detail)
    return identifier, token


def list_tokens(store: Store) -> list[Mapping[str, Any]]:
    """Every token, newest first, without what it opens; ``state`` is active, expired or revoked."""
    columns = (*(tokens.c[name] for name in ("id", "name", "scopes", "created", "expires", "used", "revoked")),
               accounts.c.name.label("account"))  # fmt: skip
    query = select(*columns).select_from(tokens.outerjoin(accounts)).order_by(*_NEWEST_FIRST)
    moment = now()
    with store.read() as connection:
        rows = connection.execute(query).all()
    return [
        {"id": row.id, "name": row.name, "scopes": ",".join(row.scopes), "account": row.account or "",
         "state": _state(row, moment), "created": row.created, "expires": row.expires, "used": row.used}
        for row in rows
    ]  # fmt: skip


def revoke_token(store: Store, identifier: str, *, actor: str) -> None:
    """Ends a token at once. Raises Refusal where none that is not revoked yet has this id."""
    with store.write() as connection:
        there = (tokens.c.id == identifier[:16]) & tokens.c.revoked.is_(None)
        if connection.execute(update(tokens).where(there).values(revoked=now())).rowcount == 0:
            raise Refusal("token", "There is no such token, or it was revoked before.")
        record(connection, actor, "token.revoke", identifier, {})


def bearer_of(store: Store, token: str, address: str) -> Bearer | None:
    """Who shows this token; None where it does not hold: never was, is over, revoked, or its account is disabled.

    One that does not hold is counted against its sender. Raises Refusal where too many were: then it is not said
    whether this one holds. A token that does is never kept waiting by what others at the address send.
    """
    hashed, moment = digest(token), now()
    with store.read() as connection:
        row = connection.execute(_TOKEN, {"token": hashed}).first() if len(token) <= 128 else None
    if row is None or _state(row, moment) != "active" or row.state == "disabled":
        _count_failure(store, address)
        return None
    if row.used is None or row.used < moment - SEEN_EVERY:
        with store.write() as connection:
            connection.execute(update(tokens).where(tokens.c.id == row.id).values(used=moment))
    return Bearer(row.id, row.name, frozenset(row.scopes), row.account_id, row.account, row.role, row.state,
                  row.guidelines_read or 0)  # fmt: skip


def _checked(name: str, scopes: Sequence[str], days: int) -> list[str]:
    if not NAME.fullmatch(name):
        raise Refusal("name", "A token's name has 1 to 40 small letters, digits, dots, dashes or underscores.")
    unknown = [scope for scope in scopes if scope not in SCOPES]
    if unknown or not scopes:
        said = f"there is no scope {unknown[0][:40]!r}" if unknown else "no scope is named"
        raise Refusal("scopes", f"The scopes are {', '.join(SCOPES)}; {said}.")
    if "vote" in scopes and set(scopes) != {"vote"}:
        raise Refusal("scopes", "A token that votes can do nothing else, so that its votes stay blind.")
    if not 1 <= days <= LONGEST_DAYS:
        raise Refusal("days", f"A token holds for 1 to {LONGEST_DAYS} days.")
    return [scope for scope in SCOPES if scope in scopes]


def _owner(connection: Connection, name: str, scopes: Sequence[str]) -> str:
    row = connection.execute(select(accounts).where(accounts.c.name == name)).first()
    if row is None or row.state == "disabled":
        raise Refusal("no_account", "There is no such account, or it is disabled.")
    if "vote" not in scopes and row.role != "administrator":
        raise Refusal("account", "A token that queues or reads is an administrator's, or nobody's.")
    return str(row.id)


def _state(row: Row[Any], moment: datetime) -> str:
    if row.revoked is not None:
        return "revoked"
    return "active" if row.expires > moment else "expired"


def _count_failure(store: Store, address: str) -> None:
    with store.read() as connection:
        throttle.refuse_while_locked(connection, DOOR, address)  # without the lock of a writer
    with store.write() as connection:
        throttle.refuse_while_locked(connection, DOOR, address)
        throttle.count_failure(connection, DOOR, address)
        record(connection, "system", "token.refused", DOOR, {"address": address})
