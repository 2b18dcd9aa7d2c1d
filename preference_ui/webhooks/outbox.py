"""What webhooks are told, written in the transaction of what it tells of: either both are on the disk or neither."""

import json
import uuid
from collections.abc import Mapping
from typing import Any, Literal, get_args

from sqlalchemy import Connection, bindparam, insert, select

from preference_ui.store.schema import comparisons, deliveries, webhooks
from preference_ui.store.store import now

Event = Literal["vote.given", "record.flagged", "collection.ready"]
EVENTS: tuple[Event, ...] = get_args(Event)
_LISTENING = select(webhooks.c.id, webhooks.c.events).where(webhooks.c.gone.is_(None))
_QUEUE = select(comparisons.c.queue, comparisons.c.held).where(comparisons.c.id == bindparam("comparison"))


def emit(connection: Connection, event: Event, data: Mapping[str, Any]) -> None:
    """Leaves an event for every webhook that asked for it. Without one that costs a look at an empty table."""
    _leave(connection, event, data, [row.id for row in connection.execute(_LISTENING) if event in row.events])


def vote_given(
    connection: Connection, vote: str, comparison: str, outcome: str, reason: str, supersedes: str | None
) -> None:
    """Tells of a vote on real work, and of the record where the vote flags it. Neither says whose vote it is."""
    listening = connection.execute(_LISTENING).all()
    if not listening:
        return
    about = connection.execute(_QUEUE, {"comparison": comparison}).one()
    data = {"vote": vote, "record": comparison, "queue": about.queue}
    told: list[tuple[Event, dict[str, Any]]] = [("vote.given", data | {"outcome": outcome, "supersedes": supersedes})]
    if outcome == "flagged":
        told.append(("record.flagged", data | {"reason": reason, "held": bool(about.held)}))
    for event, said in told:
        _leave(connection, event, said, [row.id for row in listening if event in row.events])


def _leave(connection: Connection, event: Event, data: Mapping[str, Any], hooks: list[str]) -> None:
    if not hooks:
        return
    moment = now()
    body = json.dumps({"type": event, "timestamp": moment.isoformat(), "data": dict(data)})
    rows = [{"id": f"msg_{uuid.uuid4().hex}", "webhook_id": hook, "event": event, "body": body, "created": moment,
             "due": moment} for hook in hooks]  # fmt: skip
    connection.execute(insert(deliveries), rows)
