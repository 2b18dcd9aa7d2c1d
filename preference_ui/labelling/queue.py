"""Comparisons go into the queue: to be voted on, as gold (the right answer is known), or as the trial with feedback."""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, exists, func, insert, select, text, update

from alignment.errors import Fault, InputError
from alignment.records import Comparison
from preference_ui.labelling.identity_leaks import names_itself
from preference_ui.labelling.vote_schema import storable
from preference_ui.store.schema import comparisons, leases
from preference_ui.store.store import Store, now, record
from preference_ui.store.tallies import queue_tallies_now

Purpose = Literal["work", "gold", "trial"]
UNLIMITED = 1_000_000  # gold and trial comparisons are for every rater
MAX_TEXT = 100_000  # characters of one answer or of a whole conversation
BATCH = 1_000  # rows of one transaction: what raters write waits for it
TAKEN = "this id is already taken by another question"
_KNOWN = ("prompt", "responses", "purpose", "expected")
MAX_ID = 128  # characters, as the store keeps them
_QUEUE_LOCK = 0x726C6869  # any number that only this app takes
_SYSTEM = random.SystemRandom()


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
    return _insert(store, [work_row(item, votes_wanted, queue, weights.get(item.id, 0.0)) for item in items], actor)


def queue_gold(
    store: Store, items: Iterable[Gold], *, purpose: Purpose = "gold", queue: str = "default", actor: str = "system"
) -> int:
    """Stores comparisons with a known answer, which every rater gets (gold: silently; trial: with feedback).

    Gold of a queue is mixed into the work of that queue, that of the general one into everybody's.
    """
    items = list(items)
    if faults := [fault for gold in items for fault in comparison_faults(gold.comparison)]:
        raise InputError(faults)
    return _insert(store, [gold_row(gold, purpose, queue) for gold in items], actor)


def work_row(item: Comparison, votes_wanted: int, queue: str, weight: float = 0.0) -> dict[str, Any]:
    """A comparison that waits for raters as a row of the store."""
    return _row(item, "work", votes_wanted, queue, weight)


def gold_row(gold: Gold, purpose: Purpose = "gold", queue: str = "default") -> dict[str, Any]:
    """A comparison with a known answer as a row. Raises InputError where the ranking does not fit the answers."""
    ranked = sorted(one for group in gold.ranking for one in group)
    if ranked != sorted(response.id for response in gold.comparison.responses):
        remedy = "rank every answer exactly once, best first"
        raise InputError([Fault(f"the known ranking of {gold.comparison.id} does not fit its answers", remedy)])
    row = _row(gold.comparison, purpose, UNLIMITED, queue, 0.0)
    return row | {"expected": {"ranking": [list(group) for group in gold.ranking], "why": gold.why}}


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


def put_back(store: Store, identifiers: Sequence[str], *, actor: str) -> int:
    """Puts withdrawn comparisons back into their queues, and hands out what was held: somebody has looked at them.

    Returns how many it changed.
    """
    with store.write() as connection:
        away = comparisons.c.id.in_(identifiers) & (comparisons.c.withdrawn | comparisons.c.held)
        names = sorted(connection.execute(select(comparisons.c.id).where(away)).scalars())
        changed = update(comparisons).where(comparisons.c.id.in_(names)).values(withdrawn=False, held=False)
        connection.execute(changed)
        for name in names:
            record(connection, actor, "comparison.put_back", name, {})
        return len(names)


def waiting(store: Store) -> int:
    """How many votes are still wanted, leases that are open not counted."""
    return sum(tally.wanted - tally.taken for tally in queue_tallies_now(store).values())


def comparison_faults(item: Comparison) -> list[Fault]:
    """What stands against showing a comparison to raters and keeping it; each fault's field is the comparison's id."""
    faults = []
    field = item.id.replace("\0", "")[:MAX_ID]
    if len(item.id) > MAX_ID:
        faults.append(Fault(f"the id is over {MAX_ID} characters", "give a shorter one", field=field))
    if len({response.id for response in item.responses}) != len(item.responses):
        faults.append(Fault("two answers have the same id", "give every answer its own id", field=field))
    texts = ["".join(message.content for message in item.prompt.messages), *(one.text for one in item.responses)]
    if max(map(len, texts)) > MAX_TEXT:
        faults.append(Fault(f"a text is over {MAX_TEXT} characters", "shorten it", field=field))
    if not storable(item.model_dump(mode="json")):
        faults.append(Fault("a text has a NUL or a broken character", "remove it", field=field))
    return faults


def _row(item: Comparison, purpose: Purpose, votes_wanted: int, queue: str, weight: float) -> dict[str, Any]:
    return {
        "id": item.id,
        "purpose": purpose,
        "prompt": item.prompt.model_dump(mode="json"),
        "responses": [response.model_dump(mode="json") for response in item.responses],
        "expected": None,
        "votes_wanted": votes_wanted,
        "taken": 0,
        "informativeness": weight,
        "shuffle": _SYSTEM.random(),
        "self_naming": [response.id for response in item.responses if names_itself(response.text)],
        "withdrawn": False,
        "created": now(),
        "queue": queue,
    }


def _insert(store: Store, rows: Sequence[dict[str, Any]], actor: str) -> int:
    """Stores what is new, ``BATCH`` rows in each transaction, so that raters go on meanwhile."""
    fresh: dict[str, dict[str, Any]] = {}
    faults = []
    with store.read() as connection:
        known = known_rows(connection, [str(row["id"]) for row in rows])
    for row in rows:
        earlier = known.get(row["id"]) or fresh.get(row["id"])
        if earlier is None:
            fresh[row["id"]] = row
        elif not same_question(earlier, row):
            faults.append(Fault(TAKEN, "use a new id", field=str(row["id"])))
    if faults:
        raise InputError(faults)
    new, waiting_rows = 0, list(fresh.values())
    for start in range(0, len(waiting_rows), BATCH):
        new += insert_batch(store, waiting_rows[start : start + BATCH], actor)
    if new:
        count_anew(store)
    return new


def insert_batch(store: Store, rows: Sequence[dict[str, Any]], actor: str) -> int:
    """Stores those rows that are new in one transaction. Returns how many. Raises InputError, with none stored, where
    an id was taken by another question meanwhile."""
    with store.write() as connection:
        if not store.is_sqlite:  # or who brings the same rows at the same moment sees none of them yet
            connection.execute(select(func.pg_advisory_xact_lock(_QUEUE_LOCK)))
        known = known_rows(connection, [str(row["id"]) for row in rows])
        if faults := [Fault(TAKEN, "use a new id", field=str(row["id"])) for row in rows
                      if row["id"] in known and not same_question(known[row["id"]], row)]:  # fmt: skip
            raise InputError(faults)
        fresh = [row for row in rows if row["id"] not in known]
        if fresh:
            connection.execute(insert(comparisons), fresh)
            kinds = sorted({str(row["purpose"]) for row in fresh})
            record(connection, actor, "comparisons.queue", f"{len(fresh)} comparisons", {"purposes": kinds})
        return len(fresh)


def turn_to_gold(store: Store, rows: Sequence[dict[str, Any]], actor: str) -> int:
    """Has comparisons that are queued for raters be gold, as these rows of :func:`gold_row` say. Returns how many.

    One that a rater has had stays what it is: the votes on it are real work.
    """
    turned = 0
    with store.write() as connection:
        had = exists().where(leases.c.comparison_id == comparisons.c.id)
        for row in rows:
            one = (comparisons.c.id == row["id"]) & (comparisons.c.purpose == "work") & ~had
            values = {name: row[name] for name in ("purpose", "expected", "votes_wanted", "queue")}
            turned += connection.execute(update(comparisons).where(one).values(values)).rowcount
        if turned:
            record(connection, actor, "comparisons.gold", f"{turned} comparisons", {})
    return turned


def count_anew(store: Store) -> None:
    """Has PostgreSQL know how long the queue is now: or the next draws sort it, which it still thinks is short."""
    if not store.is_sqlite:
        with store.write() as connection:
            connection.execute(text("ANALYZE comparisons"))


def same_question(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two rows ask the same."""
    return bool((one["prompt"], one["responses"]) == (other["prompt"], other["responses"]))


def known_rows(connection: Connection, identifiers: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What is asked under these ids already."""
    known: dict[str, dict[str, Any]] = {}
    columns = [comparisons.c[name] for name in ("id", *_KNOWN)]
    for start in range(0, len(identifiers), 500):
        part = identifiers[start : start + 500]
        for row in connection.execute(select(*columns).where(comparisons.c.id.in_(part))):
            known[row.id] = {name: getattr(row, name) for name in _KNOWN}
    return known
