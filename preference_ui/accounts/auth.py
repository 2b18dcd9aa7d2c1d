"""Who is there: sign-in, sessions, lockout. Passwords are argon2 hashes; a session's token is stored as its SHA-256.

Guesses at one name are looked at one after another, so that guesses sent side by side count too; what is right counts
towards nothing. An unknown name costs the same time and gets the same sentence as a wrong password.
"""

import hashlib
import secrets
import threading
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerifyMismatchError
from sqlalchemy import Connection, bindparam, delete, insert, select, update

from preference_ui.accounts import throttle
from preference_ui.store.errors import Refusal
from preference_ui.store.schema import accounts, sessions
from preference_ui.store.store import Store, now, record

Role = Literal["rater", "administrator"]
SESSION_IDLE = timedelta(hours=12)
SESSION_LIFE = timedelta(days=7)
SEEN_EVERY = timedelta(minutes=5)  # how exactly the idle time is kept: a write for every request would be waste
MAX_PASSWORD = 200

_SESSION = (
    select(
        accounts.c.id,
        accounts.c.name,
        accounts.c.role,
        accounts.c.state,
        accounts.c.guidelines_read,
        sessions.c.seen,
        sessions.c.expires,
    )
    .join_from(sessions, accounts)
    .where(sessions.c.token_hash == bindparam("token"))
)
_hasher = PasswordHasher()
_hashing = threading.BoundedSemaphore(4)  # argon2 takes 64 MiB a time: a crowd at the door must not take all memory
_at_the_door = [threading.Lock() for _ in range(64)]  # names share them
_nobody = _hasher.hash(secrets.token_urlsafe(16))


@dataclass(frozen=True, slots=True)
class Account:
    """Somebody who is signed in."""

    id: str
    name: str
    role: Role
    state: str
    guidelines_read: int

    @property
    def is_administrator(self) -> bool:
        return self.role == "administrator" and self.state == "active"


def sign_in(store: Store, name: str, password: str, address: str) -> str:
    """Opens a session. Returns its token. Raises Refusal where name or password is wrong or the door is locked."""
    name = name.strip().lower()[:64]
    with _at_the_door[hash(name) % len(_at_the_door)]:
        with store.read() as connection:
            throttle.refuse_while_locked(connection, name, address)
            row = connection.execute(select(accounts).where(accounts.c.name == name)).first()
        known = row.password_hash if row is not None else None
        right = _verify(known or _nobody, password[:MAX_PASSWORD]) and known is not None
        if row is None or not right or row.state == "disabled":
            with store.write() as connection:
                throttle.count_failure(connection, name, address)
                record(connection, "system", "session.refused", name, {"address": address})
            raise Refusal("wrong", "Name or password is not right.")
        with store.write() as connection:
            throttle.forgive(connection, name, address)
            return open_session(connection, row.id, row.name)


def open_session(connection: Connection, account_id: str, name: str) -> str:
    """Writes a session for an account that has just proven itself. Returns the token, which is stored nowhere."""
    token, moment = secrets.token_urlsafe(32), now()
    connection.execute(delete(sessions).where(sessions.c.expires < moment))
    values = {"token_hash": digest(token), "account_id": account_id, "created": moment, "seen": moment}
    connection.execute(insert(sessions).values(values | {"expires": moment + SESSION_LIFE}))
    record(connection, name, "session.open", name, {})
    return token


def authenticate(store: Store, token: str | None) -> Account | None:
    """The account behind a session's token; None where the session is over or never was."""
    if not token or len(token) > 128:
        return None
    hashed, moment = digest(token), now()
    with store.read() as connection:
        row = connection.execute(_SESSION, {"token": hashed}).first()
    if row is None or row.state == "disabled" or row.expires <= moment or row.seen <= moment - SESSION_IDLE:
        return None
    if row.seen < moment - SEEN_EVERY:
        with store.write() as connection:
            connection.execute(update(sessions).where(sessions.c.token_hash == hashed).values(seen=moment))
    return Account(row.id, row.name, row.role, row.state, row.guidelines_read)


def sign_out(store: Store, token: str) -> None:
    """Closes one session."""
    with store.write() as connection:
        connection.execute(delete(sessions).where(sessions.c.token_hash == digest(token)))


def sign_out_everywhere(store: Store, account_id: str, *, actor: str) -> int:
    """Closes every session of an account, on all its devices, at once. Returns how many."""
    with store.write() as connection:
        closed = connection.execute(delete(sessions).where(sessions.c.account_id == account_id)).rowcount
        record(connection, actor, "session.close_all", account_id, {"sessions": closed})
        return closed


def hash_password(password: str, name: str) -> str:
    """The argon2 hash of a new password. Raises Refusal where it is too weak."""
    if not 10 <= len(password) <= MAX_PASSWORD:
        raise Refusal("password", "A password needs at least 10 characters; a few words together are easy to remember.")
    if name.lower() in password.lower() or len(set(password)) < 5:
        raise Refusal("password", "This password is too easy to guess. A few words together are easy to remember.")
    with _hashing:
        return _hasher.hash(password)


def digest(token: str) -> str:
    """What is stored of a token."""
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def _verify(known: str, password: str) -> bool:
    try:
        with _hashing:
            return _hasher.verify(known, password)
    except (VerifyMismatchError, InvalidHashError, UnicodeEncodeError):
        return False
