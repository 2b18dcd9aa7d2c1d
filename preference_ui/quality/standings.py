"""What the votes on each comparison say, brought up to date a few comparisons at a time.

Triggers note each comparison whose votes have changed; a look takes some of those notes, reads the votes on just these
comparisons, and writes a row for each and the difference into the queue's tally. So Krippendorff's α of a queue, and
which of its comparisons are disputed, cost no more where there are more votes.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import combinations
from typing import Any

from sqlalchemy import Connection, delete, exists, insert, select

from alignment.preferences.consensus import oriented
from alignment.records import Comparison
from preference_ui.store.schema import changed_comparisons, comparisons, exclusions, queue_tallies, standings, votes
from preference_ui.store.store import Store
from preference_ui.store.tallies import QueueTally, alone

AT_ONCE = 100  # comparisons of one transaction: some tens of milliseconds
RATINGS = ("first", "second", "ties", "both_bad")
_SUMMED = ("units", *RATINGS, "apart")
_LOCK = 0x726C6868  # any number that only this app takes


def bring_up_to_date(store: Store, *, at_most: int | None = None) -> int:
    """Takes notes of changed comparisons, ``at_most`` so many (None: all of them). Returns how many it took."""
    done = 0
    while at_most is None or done < at_most:
        taken = _step(store, AT_ONCE if at_most is None else min(AT_ONCE, at_most - done))
        done += taken
        if not taken:
            break
    return done


def alpha(tally: QueueTally) -> float | None:
    """Krippendorff's α, nominal, of the verdicts of a queue; None where it is undefined.

    α = 1 − (n − 1) · Σ_units Σ_{c≠k} n_uc·n_uk / (m_u − 1) / Σ_{c≠k} n_c·n_k, over units with m_u ≥ 2 ratings
    (Krippendorff 2011).
    """
    counts = [getattr(tally, name) for name in RATINGS]
    n = sum(counts)
    chance = n * n - sum(one * one for one in counts)
    return None if chance <= 0 else 1 - (n - 1) * tally.apart / chance


def _step(store: Store, many: int) -> int:
    """One transaction. Returns how many notes it took: 0 where there is none, or another process takes them now."""
    with store.read() as connection:
        if connection.execute(select(changed_comparisons.c.id).limit(1)).first() is None:
            return 0
    with store.write() as connection:
        if not alone(connection, _LOCK):
            return 0
        oldest = select(changed_comparisons.c.id).order_by(changed_comparisons.c.id).limit(many)
        notes = delete(changed_comparisons).where(changed_comparisons.c.id.in_(oldest.scalar_subquery()))
        taken = connection.execute(notes.returning(changed_comparisons.c.comparison_id)).scalars().all()
        if names := sorted(set(taken)):
            _renew(connection, names)
        return len(taken)


def _renew(connection: Connection, names: Sequence[str]) -> None:
    before = {row.comparison_id: row for row in connection.execute(
        select(standings).where(standings.c.comparison_id.in_(names)))}  # fmt: skip
    cast = _votes_on(connection, names)
    rows = []
    moved: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(_SUMMED, 0))
    columns = (comparisons.c.id, comparisons.c.queue, comparisons.c.prompt, comparisons.c.responses)
    work = (comparisons.c.purpose == "work") & comparisons.c.id.in_(names)
    for item in connection.execute(select(*columns).where(work)):
        row = _standing(item, cast.get(item.id, []))
        known = before.get(item.id)
        for name in _SUMMED:
            moved[item.queue][name] += row[name] - (0 if known is None else getattr(known, name))
        if cast.get(item.id):
            rows.append(row)
    connection.execute(delete(standings).where(standings.c.comparison_id.in_(names)))
    if rows:
        connection.execute(insert(standings), rows)
    changes = [{"queue": queue} | sums for queue, sums in moved.items() if any(sums.values())]
    if changes:
        connection.execute(insert(queue_tallies), changes)


def _votes_on(connection: Connection, names: Sequence[str]) -> dict[str, list[Any]]:
    """The votes that stand and count, by comparison, oldest first."""
    later = votes.alias("later")
    stands = ~exists().where(later.c.supersedes == votes.c.id) & ~exists().where(exclusions.c.vote_id == votes.c.id)
    query = select(votes).where(votes.c.comparison_id.in_(names) & votes.c.purpose.in_(("work", "ruling")) & stands)
    cast: dict[str, list[Any]] = defaultdict(list)
    for row in connection.execute(query.order_by(votes.c.created, votes.c.id)):
        cast[row.comparison_id].append(row)
    return cast


def _standing(item: Any, cast: Sequence[Any]) -> dict[str, Any]:
    judged = [one for one in cast if one.purpose == "work" and one.outcome != "skipped"]
    newest: datetime | None = max((one.created for one in cast), default=None)
    row: dict[str, Any] = dict.fromkeys(_SUMMED, 0) | {
        "comparison_id": item.id, "queue": item.queue, "judged": len(judged), "newest": newest,
        "flags": sum(one.outcome == "flagged" for one in judged),
        "comments": sum(bool(one.comment) for one in cast),
        "corrections": sum(one.correction is not None for one in cast),
        "ruled": any(one.purpose == "ruling" for one in cast), "disagreement": 0.0, "apart": 0.0,
    }  # fmt: skip
    comparison = Comparison.model_validate({"id": item.id, "prompt": item.prompt, "responses": item.responses})
    for pair in combinations(comparison.responses, 2):
        first, second = (response.id for response in oriented(pair))
        counts = Counter(rated for one in judged if (rated := _rating(one, first, second)) is not None)
        _count(row, counts)
    thumbs = Counter(one.outcome for one in judged if one.outcome in ("up", "down"))
    if thumbs.total() > 1:  # no unit: α is of verdicts on pairs
        row["disagreement"] = 1 - max(thumbs.values()) / thumbs.total()
    return row


def _count(row: dict[str, Any], counts: Mapping[str, int]) -> None:
    """Adds one unit, where two raters or more have rated it."""
    rated = sum(counts.values())
    if rated < 2:
        return
    row["units"] += 1
    for name, count in counts.items():
        row[name] += count
    row["apart"] += (rated * rated - sum(count * count for count in counts.values())) / (rated - 1)
    row["disagreement"] = max(row["disagreement"], 1 - max(counts.values()) / rated)


def _rating(vote: Any, first: str, second: str) -> str | None:
    """What a vote says of two answers; None for a flag, which rates neither."""
    if vote.outcome != "ranked":
        return "both_bad" if vote.outcome == "both_bad" else None
    place = {response: at for at, group in enumerate(vote.ranking) for response in group}
    if place[first] == place[second]:
        return "ties"
    return "first" if place[first] < place[second] else "second"
