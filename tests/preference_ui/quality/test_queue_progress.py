"""Hours by hand-made leases, and the queues as an administrator sees them."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import insert

from alignment.records import Comparison
from preference_ui.labelling.queue import queue_comparisons
from preference_ui.quality.queue_progress import queue_progress, votes_over_time
from preference_ui.quality.work_time import cover, work_times
from preference_ui.store import schema
from preference_ui.store.queue_settings import QueueSettings, change_queue
from preference_ui.store.settings import DeskSettings
from preference_ui.store.store import Store, now

Make = Callable[..., Comparison]
Add = Callable[..., str]
NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("spans", "new"),
    [
        ([(0, 10), (10, 15)], [10, 5]),
        ([(0, 10), (4, 12)], [10, 2]),  # four to ten was counted
        ([(40, 60), (0, 100)], [20, 80]),  # one inside a longer one that ends later
        ([(0, 10), (20, 30), (5, 40)], [10, 10, 20]),  # five to ten and twenty to thirty were counted
    ],
)
def test_what_overlaps_counts_once(spans: list[tuple[float, float]], new: list[float]) -> None:
    covered: list[tuple[float, float]] = []
    assert [cover(covered, span) for span in spans] == new


def _vote(store: Store, account: str, comparison: str, began: datetime, ended: datetime, **more: str) -> None:
    name = f"{account}-{comparison}-{ended.timestamp()}"
    of = {"comparison_id": comparison, "account_id": account, "purpose": more.get("purpose", "work")}
    lease = of | {"id": f"l{hash(name) % 10**12}", "state": "voted", "order": [], "drawn_by": "random",
                  "holds_place": False, "created": began, "expires": ended, "queue": more["queue"]}  # fmt: skip
    vote = of | {"id": f"v{hash(name) % 10**12}", "lease_id": lease["id"], "ranking": [], "criteria": {},
                 "outcome": "skipped" if more.get("skipped") else "both_bad", "created": ended,
                 "seconds": (ended - began).total_seconds()}  # fmt: skip
    with store.write() as connection:
        connection.execute(insert(schema.leases).values(lease))
        connection.execute(insert(schema.votes).values(vote))


def test_hours_are_cut_where_nothing_happened_and_kept_apart_by_rater_and_queue(
    store: Store, comparison: Make, add_rater: Add
) -> None:
    ada, bob = add_rater(store, "ada"), add_rater(store, "bob")
    queue_comparisons(store, [comparison(f"c{at}") for at in range(4)], votes_wanted=3, queue="code")
    queue_comparisons(store, [comparison("p0")], votes_wanted=3, queue="prose")
    minute = timedelta(minutes=1)
    _vote(store, ada, "c0", NOON, NOON + 2 * minute, queue="code")
    _vote(store, ada, "c1", NOON + 2 * minute, NOON + 62 * minute, queue="code")  # an hour away: five minutes count
    _vote(store, ada, "p0", NOON + 62 * minute, NOON + 65 * minute, queue="prose", skipped="yes")
    _vote(store, bob, "c0", NOON, NOON + 4 * minute, queue="code")
    _vote(store, bob, "c2", NOON, NOON + minute, queue="code", purpose="ruling")
    found = {(one.rater, one.queue): (one.votes, one.seconds) for one in work_times(store, idle_minutes=5)}
    assert found == {("ada", "code"): (2, 420), ("ada", "prose"): (1, 180), ("bob", "code"): (1, 240)}


def test_a_queue_says_how_far_it_is_and_what_it_cost(store: Store, comparison: Make, add_rater: Add) -> None:
    store.change_settings(DeskSettings(hourly_rate=30, idle_minutes=5), author="root")
    ada = add_rater(store, "ada")
    queue_comparisons(store, [comparison(f"c{at}") for at in range(4)], votes_wanted=2, queue="code")
    queue_comparisons(store, [comparison("p0")], votes_wanted=1, queue="prose")
    change_queue(store, "code", QueueSettings(raters=("ada",), priority=3), author="root")
    change_queue(store, "prose", QueueSettings(deadline=NOON), author="root")
    moment = now()
    for at in range(2):
        _vote(store, ada, f"c{at}", moment - timedelta(minutes=20 - 4 * at), moment - timedelta(minutes=16 - 4 * at),
              queue="code")  # fmt: skip
    code, prose = queue_progress(store)
    assert (code.queue, code.state, code.priority, code.raters) == ("code", "open", 3, ("ada",))
    assert (code.given, code.wanted, code.complete, code.an_hour, code.hours_left) == (2, 8, 0, 2.0, 3.0)
    assert code.hours_worked == pytest.approx(8 / 60)
    assert code.cost == pytest.approx(4.0)
    assert (prose.state, prose.hours_left, prose.an_hour) == ("over", None, 0.0)


def test_votes_are_counted_by_the_hour_and_over_a_longer_time_by_the_day(
    store: Store, comparison: Make, add_rater: Add
) -> None:
    ada = add_rater(store, "ada")
    queue_comparisons(store, [comparison(f"c{at}") for at in range(4)], votes_wanted=1, queue="code")
    for at, minutes in enumerate((1, 59, 61)):
        _vote(store, ada, f"c{at}", NOON, NOON + timedelta(minutes=minutes), queue="code")
    assert votes_over_time(store) == [(NOON, "code", 2), (NOON + timedelta(hours=1), "code", 1)]
    late = NOON + timedelta(days=9, minutes=5)
    _vote(store, ada, "c3", late - timedelta(minutes=1), late, queue="code")
    day = NOON.replace(hour=0)
    assert votes_over_time(store, "code") == [(day, "code", 3), (day + timedelta(days=9), "code", 1)]
    assert votes_over_time(store, "prose") == []
