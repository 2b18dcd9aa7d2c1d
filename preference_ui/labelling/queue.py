"""Comparisons go into the queue: to be voted on, as gold (the right answer is known), or as the trial with feedback."""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Connection, func, insert, select, text, update

from alignment.errors import Fault, InputError
from alignment.records import Comparison
from preference_ui.labelling.identity_leaks import names_itself
from preference_ui.labelling.vote_schema import storable
from preference_ui.store.schema import comparisons
from preference_ui.store.store import Store, now, record

Purpose = Literal["work", "gold", "trial"]
UNLIMITED = 1_000_000  # gold and trial comparisons are for every rater
MAX_TEXT = 100_000  # characters of one answer or of a whole conversation


@dataclass(frozen=True, slots=True)
class Gold:
    """A comparison whose right ranking (best first, ties grouped) is known, and why it is right."""

    comparison: Comparison
    ranking: tuple[tuple[str, ...], ...]
    why: str = ""


def queue_comparisons(
    store: Store,
    items: Iterable[Comparison],
    *,
    votes_wanted: int,
    queue: str = "default",
    informativeness: Mapping[str, float] | None = None,
    actor: str = "system",
) -> int:
    """Queues comparisons that each wait for ``votes_wanted`` raters. Returns how many were new.

    The same comparison may be queued again, which changes nothing. Raises InputError, with nothing queued, where an id
    is already taken by another question, or a text is too long to be shown.
    """
    if votes_wanted < 1:
        raise InputError([Fault("a comparison needs at least one vote", "ask for 1 or more", field="votes_wanted")])
    weights, items = informativeness or {}, list(items)
    if faults := [fault for item in items for fault in comparison_faults(item)]:
        raise InputError(faults)
    rows = [_row(item, "work", votes_wanted, queue, weights.get(item.id, 0.0)) for item in items]
    return _insert(store, rows, actor)


def queue_gold(store: Store, items: Iterable[Gold], *, purpose: Purpose = "gold", actor: str = "system") -> int:
    """Stores comparisons with a known answer, which every rater gets (gold: silently; trial: with feedback)."""
    rows = []
    if faults := [fault for gold in items for fault in comparison_faults(gold.comparison)]:
        raise InputError(faults)
    for gold in items:
        ranked = sorted(one for group in gold.ranking for one in group)
        if ranked != sorted(response.id for response in gold.comparison.responses):
            remedy = "rank every answer exactly once, best first"
            raise InputError([Fault(f"the known ranking of {gold.comparison.id} does not fit its answers", remedy)])
        row = _row(gold.comparison, purpose, UNLIMITED, "default", 0.0)
        rows.append(row | {"expected": {"ranking": [list(group) for group in gold.ranking], "why": gold.why}})
    return _insert(store, rows, actor)


def set_informativeness(store: Store, values: Mapping[str, float]) -> None:
    """Says which comparisons to ask first (higher first): a reward model's uncertainty, the width of an interval …"""
    with store.write() as connection:
        for identifier, value in sorted(values.items()):
            query = update(comparisons).where(comparisons.c.id == identifier)
            connection.execute(query.values(informativeness=float(value)))


def withdraw(store: Store, identifiers: Sequence[str], *, actor: str) -> int:
    """Takes comparisons out of the queue. Votes that were cast stay. Returns how many were withdrawn."""
    with store.write() as connection:
        condition = comparisons.c.id.in_(identifiers) & ~comparisons.c.withdrawn
        found = connection.execute(update(comparisons).where(condition).values(withdrawn=True)).rowcount
        record(connection, actor, "comparisons.withdraw", f"{found} comparisons", {"ids": list(identifiers)})
        return found


def waiting(store: Store) -> int:
    """How many votes are still wanted, leases that are open not counted."""
    condition = (comparisons.c.purpose == "work") & ~comparisons.c.withdrawn
    with store.read() as connection:
        query = select(func.coalesce(func.sum(comparisons.c.votes_wanted - comparisons.c.taken), 0)).where(condition)
        return int(connection.execute(query).scalar_one())


def comparison_faults(item: Comparison) -> list[Fault]:
    """What stands against showing a comparison to raters and keeping it; each fault's field is the comparison's id."""
    faults = []
    field = item.id.replace("\0", "")
    if len({response.id for response in item.responses}) != len(item.responses):
        faults.append(Fault("two answers have the same id", "give every answer its own id", field=field))
    texts = ["".join(message.content for message in item.prompt.messages), *(one.text for one in item.responses)]
    if max(map(len, texts)) > MAX_TEXT:
        faults.append(Fault(f"a text is over {MAX_TEXT} characters", "shorten it", field=field))
    if not storable(item.model_dump(mode="json")):
        faults.append(Fault("a text has a NUL or a broken character", "remove it", field=field))
    return faults


def _row(item: Comparison, purpose: Purpose, votes_wanted: int, queue: str, weight: float) -> dict[str, object]:
    return {
        "id": item.id,
        "purpose": purpose,
        "prompt": item.prompt.model_dump(mode="json"),
        "responses": [response.model_dump(mode="json") for response in item.responses],
        "expected": None,
        "votes_wanted": votes_wanted,
        "taken": 0,
        "informativeness": weight,
        "shuffle": random.SystemRandom().random(),
        "self_naming": [response.id for response in item.responses if names_itself(response.text)],
        "withdrawn": False,
        "created": now(),
        "queue": queue,
    }


def _insert(store: Store, rows: Sequence[dict[str, object]], actor: str) -> int:
    with store.write() as connection:
        known = _known(connection, [str(row["id"]) for row in rows])
        fresh: dict[str, dict[str, object]] = {}
        faults = []
        for row in rows:
            identifier = str(row["id"])
            earlier = known.get(identifier) or fresh.get(identifier)
            if earlier is None:
                fresh[identifier] = row
            elif (earlier["prompt"], earlier["responses"]) != (row["prompt"], row["responses"]):
                faults.append(Fault("this id is already taken by another question", "use a new id", field=identifier))
        if faults:
            raise InputError(faults)
        if fresh:
            connection.execute(insert(comparisons), list(fresh.values()))
            kinds = sorted({str(row["purpose"]) for row in fresh.values()})
            record(connection, actor, "comparisons.queue", f"{len(fresh)} comparisons", {"purposes": kinds})
            if not store.is_sqlite:  # or the next draws sort the whole queue, which PostgreSQL still thinks is short
                connection.execute(text("ANALYZE comparisons"))
        return len(fresh)


def _known(connection: Connection, identifiers: Sequence[str]) -> dict[str, dict[str, object]]:
    known: dict[str, dict[str, object]] = {}
    columns = (comparisons.c.id, comparisons.c.prompt, comparisons.c.responses)
    for start in range(0, len(identifiers), 500):
        part = identifiers[start : start + 500]
        for row in connection.execute(select(*columns).where(comparisons.c.id.in_(part))):
            known[row.id] = {"prompt": row.prompt, "responses": row.responses}
    return known
