"""How people come in: by a one-time invitation link. There is no default password; the first link makes an
administrator."""

import re
import secrets
import uuid
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, delete, func, insert, select, update

from preference_ui.accounts.auth import Role, digest, hash_password, open_session
from preference_ui.accounts.throttle import unlock
from preference_ui.store.errors import Refusal
from preference_ui.store.schema import accounts, invitations, sessions
from preference_ui.store.store import Store, insert_if_absent, now, record

NAME = re.compile(r"[a-z0-9][a-z0-9._@+-]{1,63}")
INVITATION_LIFE = timedelta(days=3)


def invite(store: Store, role: Role, *, created_by: str, note: str = "") -> str:
    """Makes an invitation that works once. Returns its token, which is stored nowhere."""
    token = secrets.token_urlsafe(32)
    with store.write() as connection:
        _write_invitation(connection, token, role, created_by, note[:200])
    return token


def first_administrator(store: Store) -> str | None:
    """A one-time invitation for an administrator, while there is none; earlier ones stop working. None afterwards."""
    with store.write() as connection:
        there = select(func.count()).where(accounts.c.role == "administrator")
        if connection.execute(there).scalar_one():
            return None
        unused = (invitations.c.created_by == "system") & invitations.c.used.is_(None)
        connection.execute(delete(invitations).where(unused))
        token = secrets.token_urlsafe(32)
        _write_invitation(connection, token, "administrator", "system", "first start")
        return token


def invitation_role(store: Store, token: str) -> Role:
    """What an invitation is for. Raises Refusal where it is used up, too old or invented."""
    with store.read() as connection:
        return _valid(connection, token).role  # type: ignore[no-any-return]


def accept(
    store: Store, token: str, name: str, password: str | None, *, oidc_subject: str | None = None
) -> tuple[str, str]:
    """Turns an invitation into an account and signs it in. Returns the account's id and a session's token.

    Raises Refusal where the invitation does not hold, the name is taken, or the password is too weak; the invitation
    stays valid then.
    """
    name = name.strip().lower()
    if not NAME.fullmatch(name):
        raise Refusal("name", "A name has 2 to 64 letters, digits, dots, dashes or underscores.")
    hashed = None if password is None else hash_password(password, name)
    with store.write() as connection:
        invitation = _valid(connection, token)
        identifier = uuid.uuid4().hex
        row = {"id": identifier, "name": name, "role": invitation.role, "state": "active", "created": now(),
               "password_hash": hashed, "oidc_subject": oidc_subject, "guidelines_read": 0,
               "trial_passed": False}  # fmt: skip
        if not insert_if_absent(connection, accounts, row):
            raise Refusal("name", "This name is already taken. Please choose another.")
        spend = update(invitations).where(invitations.c.token_hash == digest(token))
        connection.execute(spend.values(used=now(), used_by=identifier))
        record(connection, name, "account.create", name, {"role": invitation.role, "by": invitation.created_by})
        return identifier, open_session(connection, identifier, name)


def sign_in_oidc(store: Store, subject: str) -> str | None:
    """Opens a session for the account that is linked to "issuer subject"; None where there is none."""
    with store.write() as connection:
        active = (accounts.c.oidc_subject == subject) & (accounts.c.state != "disabled")
        row = connection.execute(select(accounts).where(active)).first()
        return None if row is None else open_session(connection, row.id, row.name)


def set_password(store: Store, name: str, password: str, *, actor: str) -> None:
    """Gives an account another password: closes its sessions, and opens the door that wrong ones have locked.

    Raises Refusal where there is no such account or the password is too weak.
    """
    name = name.strip().lower()
    hashed = hash_password(password, name)
    with store.write() as connection:
        row = connection.execute(select(accounts).where(accounts.c.name == name).with_for_update()).first()
        if row is None:
            raise Refusal("no_account", "There is no such account.")
        connection.execute(update(accounts).where(accounts.c.id == row.id).values(password_hash=hashed))
        connection.execute(delete(sessions).where(sessions.c.account_id == row.id))
        record(connection, actor, "account.password", name, {})
    unlock(store, name, actor=actor)


def pending_invitations(store: Store) -> Sequence[Mapping[str, Any]]:
    """The invitations that still work, newest first: ``id``, role, note, created, expires, created_by.

    The id is the beginning of what is stored of a token, and opens nothing.
    """
    columns = [invitations.c[name] for name in ("role", "note", "created", "expires", "created_by", "token_hash")]
    query = select(*columns).where(_pending()).order_by(invitations.c.created.desc())
    with store.read() as connection:
        return [
            {
                "id": row.token_hash[:12],
                "role": row.role,
                "note": row.note,
                "created": row.created,
                "expires": row.expires,
                "created_by": row.created_by,
            }
            for row in connection.execute(query)
        ]


def revoke_invitation(store: Store, identifier: str, *, actor: str) -> None:
    """Has an invitation work no longer. Raises Refusal where none that works has this id."""
    if not re.fullmatch(r"[0-9a-f]{12}", identifier):
        raise Refusal("invitation", "There is no such invitation.")
    with store.write() as connection:
        one = invitations.c.token_hash.startswith(identifier) & _pending()
        if connection.execute(delete(invitations).where(one)).rowcount == 0:
            raise Refusal("invitation", "There is no such invitation.")
        record(connection, actor, "invitation.revoke", identifier, {})


def _pending() -> ColumnElement[bool]:
    return invitations.c.used.is_(None) & (invitations.c.expires > now())


def change_state(store: Store, account_id: str, state: str, *, actor: str, reason: str = "") -> None:
    """Pauses, disables or reactivates an account. Disabling closes its sessions. Raises Refusal for the last admin."""
    if state not in ("active", "paused", "disabled"):
        raise Refusal("malformed", "An account is active, paused or disabled.")
    with store.write() as connection:
        row = connection.execute(select(accounts).where(accounts.c.id == account_id).with_for_update()).first()
        if row is None:
            raise Refusal("no_account", "There is no such account.")
        if row.role == "administrator" and state != "active":
            others = (accounts.c.role == "administrator") & (accounts.c.state == "active") & (accounts.c.id != row.id)
            if connection.execute(select(func.count()).where(others)).scalar_one() == 0:
                raise Refusal("last_administrator", "The last administrator cannot be paused or disabled.")
        connection.execute(update(accounts).where(accounts.c.id == account_id).values(state=state))
        if state == "disabled":
            connection.execute(delete(sessions).where(sessions.c.account_id == account_id))
        record(connection, actor, f"account.{state}", row.name, {"before": row.state, "reason": reason[:500]})


def guidelines_were_read(store: Store, account_id: str, version: int) -> None:
    """Notes that a rater has read this version of the guidelines."""
    with store.write() as connection:
        connection.execute(update(accounts).where(accounts.c.id == account_id).values(guidelines_read=version + 1))
        name = connection.execute(select(accounts.c.name).where(accounts.c.id == account_id)).scalar_one()
        record(connection, name, "guidelines.read", str(version), {})


def people(store: Store) -> Sequence[Mapping[str, Any]]:
    """Every account by name, without anything secret."""
    columns = (accounts.c.id, accounts.c.name, accounts.c.role, accounts.c.state, accounts.c.created)
    with store.read() as connection:
        return [
            {str(name): value for name, value in row.items()}
            for row in connection.execute(select(*columns).order_by(accounts.c.name)).mappings()
        ]


def _valid(connection: Connection, token: str) -> Row[Any]:
    query = select(invitations).where(invitations.c.token_hash == digest(token)).with_for_update()
    row: Row[Any] | None = connection.execute(query).first()
    if row is None or row.used is not None or row.expires < now():
        raise Refusal("invitation", "This invitation was already used or is too old. Please ask for a new one.")
    return row


def _write_invitation(connection: Connection, token: str, role: Role, created_by: str, note: str) -> None:
    row = {"token_hash": digest(token), "role": role, "note": note, "created": now(), "created_by": created_by}
    connection.execute(insert(invitations).values(row | {"expires": now() + INVITATION_LIFE}))
    record(connection, created_by, "invitation.create", role, {"note": note})
