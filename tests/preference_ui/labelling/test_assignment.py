import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from datetime import timedelta

import pytest
from sqlalchemy import func, select, update

from alignment.records import Comparison
from preference_ui.labelling.assignment import next_lease, open_leases, sweep
from preference_ui.labelling.queue import Gold, queue_comparisons, queue_gold, set_informativeness, waiting, withdraw
from preference_ui.labelling.revision import reopen
from preference_ui.labelling.voting import cast_vote
from preference_ui.store import schema
from preference_ui.store.errors import Refusal
from preference_ui.store.settings import DeskSettings
from preference_ui.store.store import Store, now

Make = Callable[..., Comparison]
Add = Callable[..., str]
PLAIN = DeskSettings(gold_share=0, repeat_share=0, random_share=0, policy="least_voted")
A_BETTER = {"outcome": "ranked", "strength": -2}


def _taken(store: Store) -> dict[str, int]:
    with store.read() as connection:
        query = select(schema.comparisons.c.id, schema.comparisons.c.taken)
        return {row.id: row.taken for row in connection.execute(query)}


def _expire_all(store: Store) -> None:
    with store.write() as connection:
        connection.execute(update(schema.leases).values(expires=now() - timedelta(seconds=1)))


def test_a_rater_keeps_the_comparison_in_hand_and_never_gets_one_twice(
    store: Store, comparison: Make, add_rater: Add
) -> None:
    store.change_settings(PLAIN, author="root")
    queue_comparisons(store, [comparison(f"c{i}") for i in range(5)], votes_wanted=3)
    ada = add_rater(store, "ada")
    seen = []
    while (lease := next_lease(store, ada)) is not None:
        again = next_lease(store, ada)  # a reload
        assert again is not None
        assert (again.id, again.order) == (lease.id, lease.order)
        assert sorted(lease.order) == [f"{lease.comparison.id}-a", f"{lease.comparison.id}-b"]
        seen.append(lease.comparison.id)
        cast_vote(store, ada, lease.id, A_BETTER)
    assert sorted(seen) == [f"c{i}" for i in range(5)]
    assert set(_taken(store).values()) == {1}
    assert waiting(store) == 10


def test_no_more_raters_than_wanted_even_while_they_think(store: Store, comparison: Make, add_rater: Add) -> None:
    store.change_settings(PLAIN, author="root")
    queue_comparisons(store, [comparison("c0")], votes_wanted=2)
    raters = [add_rater(store, name) for name in ("ada", "bob", "eve")]
    leases = [next_lease(store, rater) for rater in raters]
    assert [lease is not None for lease in leases] == [True, True, False]
    assert open_leases(store) == 2


def test_an_abandoned_lease_returns_to_the_queue(store: Store, comparison: Make, add_rater: Add) -> None:
    store.change_settings(PLAIN, author="root")
    queue_comparisons(store, [comparison("c0")], votes_wanted=1)
    ada, bob = add_rater(store, "ada"), add_rater(store, "bob")
    assert next_lease(store, ada) is not None
    assert next_lease(store, bob) is None
    _expire_all(store)
    assert next_lease(store, bob) is not None  # it swept on its own
    assert next_lease(store, ada) is None
    assert _taken(store) == {"c0": 1}


def test_a_rater_who_comes_back_before_anybody_else_goes_on(store: Store, comparison: Make, add_rater: Add) -> None:
    queue_comparisons(store, [comparison("c0")], votes_wanted=1)
    ada = add_rater(store, "ada")
    first = next_lease(store, ada)
    _expire_all(store)
    again = next_lease(store, ada)
    assert first is not None
    assert again is not None
    assert again.id == first.id
    assert again.expires > now()
    assert sweep(store) == 0


@pytest.mark.parametrize("policy", ["random", "least_voted", "most_informative"])
def test_the_policy_decides_what_comes_next(store: Store, comparison: Make, add_rater: Add, policy: str) -> None:
    store.change_settings(PLAIN.model_copy(update={"policy": policy}), author="root")
    queue_comparisons(store, [comparison(f"c{i}") for i in range(6)], votes_wanted=9)
    set_informativeness(store, {"c4": 0.9, "c2": 0.5})
    with store.write() as connection:
        connection.execute(update(schema.comparisons).where(schema.comparisons.c.id != "c3").values(taken=2))
    firsts = set()
    for at in range(24 if policy == "random" else 1):
        rater = add_rater(store, f"r{at}")
        lease = next_lease(store, rater, rng=random.Random(at))
        assert lease is not None
        firsts.add(lease.comparison.id)
    expected = {"least_voted": {"c3"}, "most_informative": {"c4"}}
    assert firsts == expected[policy] if policy in expected else len(firsts) >= 4


def test_a_share_is_random_whatever_the_policy_and_says_so(
    sqlite_store: Store, comparison: Make, add_rater: Add
) -> None:
    sqlite_store.change_settings(PLAIN.model_copy(update={"random_share": 0.3}), author="root")
    queue_comparisons(sqlite_store, [comparison(f"c{i}") for i in range(200)], votes_wanted=1)
    ada, rng = add_rater(sqlite_store, "ada"), random.Random(7)
    while (lease := next_lease(sqlite_store, ada, rng=rng)) is not None:
        cast_vote(sqlite_store, ada, lease.id, A_BETTER)
    with sqlite_store.read() as connection:
        query = select(schema.leases.c.drawn_by, func.count()).group_by(schema.leases.c.drawn_by)
        drawn = {row[0]: row[1] for row in connection.execute(query)}
    assert drawn.keys() == {"random", "least_voted"}
    assert 40 <= drawn["random"] <= 80  # binomial(200, 0.3): mean 60, three deviations are 19.4


def test_the_order_on_the_screen_is_drawn_evenly_and_stored(
    sqlite_store: Store, comparison: Make, add_rater: Add
) -> None:
    sqlite_store.change_settings(PLAIN, author="root")
    queue_comparisons(sqlite_store, [comparison(f"c{i}") for i in range(200)], votes_wanted=1)
    ada, rng, first = add_rater(sqlite_store, "ada"), random.Random(3), Counter[str]()
    while (lease := next_lease(sqlite_store, ada, rng=rng)) is not None:
        first[lease.order[0][-1]] += 1
        cast_vote(sqlite_store, ada, lease.id, A_BETTER)
    assert abs(first["a"] - 100) <= 22  # three deviations of binomial(200, 0.5)


def test_gold_and_repeats_are_mixed_in_and_take_no_place(store: Store, comparison: Make, add_rater: Add) -> None:
    mixed = PLAIN.model_copy(update={"gold_share": 0.3, "repeat_share": 0.3, "repeat_after": 2})
    store.change_settings(mixed, author="root")
    queue_comparisons(store, [comparison(f"c{i}") for i in range(20)], votes_wanted=1)
    queue_gold(store, [Gold(comparison(f"g{i}"), ((f"g{i}-a",), (f"g{i}-b",))) for i in range(4)])
    ada, rng, kinds = add_rater(store, "ada"), random.Random(5), Counter[str]()
    while (lease := next_lease(store, ada, rng=rng)) is not None:
        kinds[lease.purpose] += 1
        cast_vote(store, ada, lease.id, A_BETTER)
    assert kinds["work"] == 20
    assert kinds["gold"] == 4
    assert kinds["repeat"] >= 3
    assert {name: taken for name, taken in _taken(store).items() if name.startswith("g")} == dict.fromkeys(
        (f"g{i}" for i in range(4)), 0
    )


def test_a_paused_rater_gets_a_sentence_and_a_withdrawn_comparison_nobody(
    store: Store, comparison: Make, add_rater: Add
) -> None:
    queue_comparisons(store, [comparison("c0")], votes_wanted=1)
    paused, ada = add_rater(store, "bob", state="paused"), add_rater(store, "ada")
    with pytest.raises(Refusal, match="paused by an administrator"):
        next_lease(store, paused)
    assert withdraw(store, ["c0"], actor="root") == 1
    assert next_lease(store, ada) is None


def test_undo_reopens_the_newest_vote_beside_the_one_in_hand(store: Store, comparison: Make, add_rater: Add) -> None:
    store.change_settings(PLAIN, author="root")
    queue_comparisons(store, [comparison("c0"), comparison("c1")], votes_wanted=1)
    ada = add_rater(store, "ada")
    first = next_lease(store, ada)
    assert first is not None
    receipt = cast_vote(store, ada, first.id, A_BETTER)
    second = next_lease(store, ada)
    assert second is not None
    undone = reopen(store, ada)
    assert (undone.revises, undone.order, undone.comparison.id) == (receipt.vote_id, first.order, first.comparison.id)
    assert reopen(store, ada).id == undone.id
    shown = next_lease(store, ada)
    assert shown is not None
    assert shown.id == undone.id
    cast_vote(store, ada, undone.id, {"outcome": "ranked", "strength": 3})
    back = next_lease(store, ada)
    assert back is not None
    assert back.id == second.id
    assert _taken(store) == {"c0": 1, "c1": 1}


def test_undo_of_a_skip_waits_for_a_free_place(store: Store, comparison: Make, add_rater: Add) -> None:
    store.change_settings(PLAIN, author="root")
    queue_comparisons(store, [comparison("c0")], votes_wanted=1)
    ada, bob = add_rater(store, "ada"), add_rater(store, "bob")
    lease = next_lease(store, ada)
    assert lease is not None
    cast_vote(store, ada, lease.id, {"outcome": "skipped", "reason": "language"})
    assert _taken(store) == {"c0": 0}
    other = next_lease(store, bob)
    assert other is not None
    with pytest.raises(Refusal, match="others have finished it"):
        reopen(store, ada)
    with pytest.raises(Refusal, match="no vote to undo"):
        reopen(store, bob)


RACE = """
import sys, threading
from preference_ui.labelling.assignment import next_lease
from preference_ui.store.store import Store
from preference_ui.labelling.voting import cast_and_draw, cast_vote
store = Store.open(sys.argv[1], migrate=False)
def verdict(lease):
    return {"outcome": "ranked", "strength": -1 if lease.order[0] < lease.order[1] else 1}
def rate(name):
    while (lease := next_lease(store, name)) is not None:
        cast_vote(store, name, lease.id, verdict(lease))
        lease = next_lease(store, name)
        for _ in range(5):
            if lease is not None:
                lease = cast_and_draw(store, name, lease.id, verdict(lease))[1]
threads = [threading.Thread(target=rate, args=(name,)) for name in sys.argv[2:]]
[thread.start() for thread in threads]; [thread.join() for thread in threads]
"""


def test_raters_in_many_threads_and_processes_never_collide(store_url: str, comparison: Make, add_rater: Add) -> None:
    """Three processes of four raters each, each rater in two of them at once: 40 comparisons × 3 votes."""
    store = Store.open(store_url)
    store.change_settings(PLAIN.model_copy(update={"random_share": 0.5, "lease_minutes": 1}), author="root")
    queue_comparisons(store, [comparison(f"c{i}") for i in range(40)], votes_wanted=3)
    names = [add_rater(store, f"r{i}") for i in range(6)]
    groups = [names[0:4], names[2:6], names[4:6] + names[0:2]]
    running = [subprocess.Popen([sys.executable, "-c", RACE, store_url, *group], stderr=-1) for group in groups]
    errors = [process.communicate(timeout=120)[1].decode() for process in running]
    # A rater in two windows may answer a lease twice: that is a repeat, not an error.
    assert errors == ["", "", ""]
    with store.read() as connection:
        rows = connection.execute(select(schema.votes)).all()
    assert len(rows) == 120
    assert Counter(row.comparison_id for row in rows) == {f"c{i}": 3 for i in range(40)}
    assert max(Counter((row.comparison_id, row.account_id) for row in rows).values()) == 1
    assert set(_taken(store).values()) == {3}
    assert len({row.lease_id for row in rows}) == 120
    store.close()


def test_two_windows_of_one_rater_hold_one_lease(store: Store, comparison: Make, add_rater: Add) -> None:
    queue_comparisons(store, [comparison(f"c{i}") for i in range(8)], votes_wanted=1)
    ada, found, gate = add_rater(store, "ada"), [], threading.Barrier(4)

    def look() -> None:
        gate.wait()
        lease = next_lease(store, ada)
        found.append(lease.id if lease else None)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
