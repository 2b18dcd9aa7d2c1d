"""Webhooks from the shell: who is told, of what, and what it has not taken."""

import base64
import secrets
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import case, delete, func, insert, select, update

from preference_ui.store.errors import Refusal
from preference_ui.store.schema import deliveries, webhooks
from preference_ui.store.store import Store, now, record
from preference_ui.webhooks.outbox import EVENTS
from preference_ui.webhooks.signature import SECRET_BYTES, SECRET_PREFIX

MAX_URL = 2_000  # characters


def add_webhook(store: Store, url: str, events: Sequence[str], *, actor: str) -> tuple[str, str]:
    """Has ``url`` told of ``events`` from now on. Returns the webhook's id, and the secret that signs: it is not shown
    again. Raises Refusal for an address or an event that is none."""
    _check_url(url)
    unknown = [event for event in events if event not in EVENTS]
    if unknown or not events:
        said = f"there is no event {unknown[0][:40]!r}" if unknown else "no event is named"
        raise Refusal("events", f"The events are {', '.join(EVENTS)}; {said}.")
    secret = SECRET_PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()
    identifier = secrets.token_hex(6)
    wanted = [event for event in EVENTS if event in events]
    row = {"id": identifier, "url": url, "events": wanted, "secret": secret, "created": now(), "created_by": actor}
    with store.write() as connection:
        connection.execute(insert(webhooks).values(row))
        record(connection, actor, "webhook.create", identifier, {"host": urlsplit(url).hostname, "events": wanted})
    return identifier, secret


def list_webhooks(store: Store) -> list[Mapping[str, Any]]:
    """Every webhook without its secret: what waits for it, what was given up, and the last trouble."""
    waits = func.coalesce(func.sum(case((deliveries.c.due.is_not(None), 1), else_=0)), 0)
    gave_up = func.coalesce(func.sum(case((deliveries.c.id.is_not(None) & deliveries.c.due.is_(None), 1), else_=0)), 0)
    columns = [webhooks.c[name] for name in ("id", "url", "events", "created", "delivered", "gone")]
    trouble = func.max(deliveries.c.trouble)
    query = (
        select(webhooks.c.id, waits.label("waiting"), gave_up.label("given_up"), trouble.label("trouble"))
        .select_from(webhooks.outerjoin(deliveries))
        .group_by(webhooks.c.id)
    )
    with store.read() as connection:
        counts = {row.id: row for row in connection.execute(query)}
        rows = connection.execute(select(*columns).order_by(webhooks.c.created, webhooks.c.id)).all()
    return [
        {"id": row.id, "url": row.url, "events": ",".join(row.events), "state": "gone" if row.gone else "active",
         "waiting": int(counts[row.id].waiting), "given_up": int(counts[row.id].given_up),
         "trouble": counts[row.id].trouble or "", "delivered": row.delivered}
        for row in rows
    ]  # fmt: skip


def remove_webhook(store: Store, identifier: str, *, actor: str) -> None:
    """Tells it no more, not of what waits for it either. Raises Refusal where there is none."""
    with store.write() as connection:
        connection.execute(delete(deliveries).where(deliveries.c.webhook_id == identifier[:16]))
        if connection.execute(delete(webhooks).where(webhooks.c.id == identifier[:16])).rowcount == 0:
            raise Refusal("webhook", "There is no such webhook.")
        record(connection, actor, "webhook.remove", identifier, {})


def retry_webhook(store: Store, identifier: str, *, actor: str) -> int:
    """Has all that waits for it, and all that was given up, tried now, from the first attempt on. Returns how many."""
    with store.write() as connection:
        there = update(webhooks).where(webhooks.c.id == identifier[:16]).values(gone=None)
        if connection.execute(there).rowcount == 0:
            raise Refusal("webhook", "There is no such webhook.")
        again = update(deliveries).where(deliveries.c.webhook_id == identifier[:16])
        many = connection.execute(again.values(attempts=0, due=now())).rowcount
        record(connection, actor, "webhook.retry", identifier, {"deliveries": many})
        return many


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or len(url) > MAX_URL or not url.isprintable() or " " in url:
        raise Refusal("url", "This is no address of http or https: give it as https://host.example/path.")
    if parts.username is not None or parts.fragment:
        raise Refusal("url", "The address has a name, a password or a #, which would not be sent: leave them out.")
