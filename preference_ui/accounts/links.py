"""Links by which many may join, up to a number: for platforms that send people with an id of their own.

Whoever comes with an id gets an account of a rater, once for each id; with the same id again, the same account. The id
stands in the address, as Prolific writes it (``?PROLIFIC_PID=…``), and opens nothing but that rater's work.
"""

import re
import secrets
import uuid
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import Connection, Row, insert, select, update

from alignment.errors import Fault, InputError
from preference_ui.accounts.auth import digest, open_session
from preference_ui.store.errors import Refusal
from preference_ui.store.schema import accounts, joined, links
from preference_ui.store.store import Store, now, record

PARAMETER = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
EXTERNAL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:+-]{0,127}")
PROLIFIC = "PROLIFIC_PID"
NO_ID = "Your link lacks the id of the site that sent you. Please open it from there again."


def make_link(
    store: Store, *, places: int, created_by: str, parameter: str = PROLIFIC, completion: str | None = None,
    note: str = "", days: float = 30,
) -> str:  # fmt: skip
    """Makes a link for so many raters. Returns its token, which is stored nowhere.

    ``completion`` is where a rater goes who is done. Raises InputError for what cannot be.
    """
    faults = []
    if not 1 <= places <= 100_000:
        faults.append(Fault(f"{places} places", "give 1 to 100000", field="places"))
    if not PARAMETER.fullmatch(parameter):
        faults.append(Fault(f"{parameter!r} is no name in an address", "use letters and digits", field="parameter"))
    if completion is not None and (urlsplit(completion).scheme not in ("http", "https") or len(completion) > 2000):
        faults.append(Fault("not an address of the web", "begin with https://", field="completion-url"))
    if not 0 < days <= 3650:
        faults.append(Fault(f"{days:g} days", "give more than 0 and at most 3650", field="days"))
    if faults:
        raise InputError(faults)
    token = secrets.token_urlsafe(32)
    hashed, moment = digest(token), now()
    values = {"token_hash": hashed, "note": note[:200], "parameter": parameter, "completion": completion,
              "places": places, "taken": 0, "created": moment, "expires": moment + timedelta(days=days),
              "created_by": created_by}  # fmt: skip
    with store.write() as connection:
        connection.execute(insert(links).values(values))
        record(connection, created_by, "link.create", hashed[:12], {"places": places, "note": note[:200]})
    return token


def link_parameter(store: Store, token: str) -> str:
    """The name under which a link's address says who comes. Raises Refusal where it does not work any more."""
    with store.read() as connection:
        return str(_valid(connection, token).parameter)


def join(store: Store, token: str, external_id: str | None) -> str:
    """Opens a session for whoever comes by a link, with an account that is new where the id is. Returns its token.

    Raises Refusal where the link does not work, is used up, or the address does not say who comes.
    """
    if external_id is None or not EXTERNAL_ID.fullmatch(external_id):
        raise Refusal("external_id", NO_ID)
    with store.write() as connection:
        link = _valid(connection, token, lock=True)
        same = (joined.c.link == link.token_hash) & (joined.c.external_id == external_id)
        known = connection.execute(select(accounts).join_from(joined, accounts).where(same)).first()
        if known is not None:
            if known.state == "disabled" or known.role != "rater":
                raise Refusal("no_account", "This account is no longer active. Please ask your administrator.")
            return open_session(connection, known.id, known.name)
        room = update(links).where((links.c.token_hash == link.token_hash) & (links.c.taken < links.c.places))
        if connection.execute(room.values(taken=links.c.taken + 1)).rowcount == 0:
            raise Refusal("full", "All places are taken. Thank you for your interest.")
        account = {"id": uuid.uuid4().hex, "name": f"joined-{secrets.token_hex(5)}", "role": "rater", "state": "active",
                   "created": now(), "guidelines_read": 0, "trial_passed": False}  # fmt: skip
        connection.execute(insert(accounts).values(account))
        came = {"account_id": account["id"], "link": link.token_hash, "external_id": external_id, "at": now()}
        connection.execute(insert(joined).values(came))
        about = {"role": "rater", "by": f"link {link.token_hash[:12]}"}
        record(connection, str(account["name"]), "account.create", str(account["name"]), about)
        return open_session(connection, str(account["id"]), str(account["name"]))


def completion_of(store: Store, account_id: str) -> str | None:
    """Where a rater goes at the end; None for who came otherwise."""
    query = select(links.c.completion).join_from(joined, links).where(joined.c.account_id == account_id)
    with store.read() as connection:
        found: str | None = connection.execute(query).scalar_one_or_none()
    return found


def external_ids(store: Store) -> dict[str, str]:
    """The ids that raters came with, by the names of their accounts."""
    query = select(accounts.c.name, joined.c.external_id).join_from(joined, accounts)
    with store.read() as connection:
        return {row[0]: row[1] for row in connection.execute(query)}


def open_links(store: Store) -> Sequence[Mapping[str, Any]]:
    """The links that still work, newest first. The id is the beginning of what is stored of a token."""
    names = ("note", "parameter", "completion", "places", "taken", "created", "expires", "created_by")
    query = select(links).where(links.c.expires > now()).order_by(links.c.created.desc())
    with store.read() as connection:
        rows = connection.execute(query).all()
    return [{"id": row.token_hash[:12]} | {name: getattr(row, name) for name in names} for row in rows]


def close_link(store: Store, identifier: str, *, actor: str) -> None:
    """Has a link work no longer; accounts that came by it stay. Raises Refusal where none that works has this id."""
    if not re.fullmatch(r"[0-9a-f]{12}", identifier):
        raise Refusal("link", "There is no such link.")
    with store.write() as connection:
        one = links.c.token_hash.startswith(identifier) & (links.c.expires > now())
        if connection.execute(update(links).where(one).values(expires=now())).rowcount == 0:
            raise Refusal("link", "There is no such link.")
        record(connection, actor, "link.close", identifier, {})


def _valid(connection: Connection, token: str, *, lock: bool = False) -> Row[Any]:
    query = select(links).where(links.c.token_hash == digest(token))
    row: Row[Any] | None = connection.execute(query.with_for_update() if lock else query).first()
    if row is None or row.expires <= now():
        raise Refusal("link", "This link does not work any more. Please ask for a new one.")
    return row
