"""The counts beside the rows, against a count of the rows themselves; and what a look at the queues may read."""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event, select, update

from alignment.preferences.vote_agreement import agreement_figures
from alignment.records import Comparison
from preference_ui.import_export import Filter, read_votes
from preference_ui.labelling import next_comparison, queue_access
from preference_ui.labelling.assignment import next_lease, sweep
from preference_ui.labelling.exclusion import exclude_rater, include_rater
from preference_ui.labelling.queue import queue_comparisons, waiting, withdraw
from preference_ui.labelling.rater_progress import ProgressBook
from preference_ui.labelling.revision import reopen
from preference_ui.labelling.voting import cast_vote
from preference_ui.quality.queue_stats import desk_standing, queue_standings
from preference_ui.quality.standings import bring_up_to_date
from preference_ui.snapshots.collections import CollectionTarget, open_collection, settle_collections
from preference_ui.store import schema
from preference_ui.store.copy_store import copy_store
from preference_ui.store.errors import Refusal
from preference_ui.store.settings import DeskSettings
from preference_ui.store.store import Store
from preference_ui.store.tallies import fold, queue_tallies_now

Make = Callable[..., Comparison]
Add = Callable[..., str]
_NOBODY = {"account": "nobody", "start": 0.5, "queue": "default"}
_WRITTEN_OUT = {"literal_binds": True}


def _by_hand(store: Store) -> dict[str, dict[str, int]]:
    """The same counts of each queue, out of all rows."""
    with store.read() as connection:
        items = connection.execute(select(schema.comparisons)).all()
        cast = connection.execute(select(schema.votes)).all()
        out = set(connection.execute(select(schema.exclusions.c.vote_id)).scalars())
    gone = {vote.supersedes for vote in cast}
    judging = [one for one in cast if one.purpose == "work" and one.outcome != "skipped"]
    judged = Counter(one.comparison_id for one in judging if one.id not in gone and one.id not in out)
    queue_of = {item.id: item.queue for item in items}
    found: dict[str, dict[str, int]] = {}
    for queue in sorted(set(queue_of.values())):
        all_work = [item for item in items if item.queue == queue and item.purpose == "work"]
        work = [item for item in all_work if not item.withdrawn]
        mine = [one for one in judging if queue_of[one.comparison_id] == queue]
        found[queue] = {
            "comparisons": len(work), "wanted": sum(item.votes_wanted for item in work),
            "taken": sum(item.taken for item in work),
            "room": sum(item.taken < item.votes_wanted and not item.held for item in work),
            "complete": sum(judged[item.id] >= item.votes_wanted for item in work),
            "filled": sum(min(judged[item.id], item.votes_wanted) for item in work),
            "judged": sum(judged[item.id] for item in all_work), "votes": len(mine),
            "wide": sum(len(item.responses) > 2 for item in all_work),
            "raters": len({one.account_id for one in mine}),
        }  # fmt: skip
    return found


def _now(store: Store) -> dict[str, dict[str, int]]:
    names = next(iter(_by_hand(store).values()))
    return {queue: {name: getattr(tally, name) for name in names} for queue, tally in queue_tallies_now(store).items()}


def _act(store: Store, people: list[str], rng: random.Random) -> None:
    """Something that a rater or an administrator may do."""
    account, deed = rng.choice(people), rng.random()
    if deed < 0.05:
        exclude_rater(store, account, actor="root", reason="test")
    elif deed < 0.1:
        include_rater(store, account, actor="root")
    elif deed < 0.13:
        withdraw(store, [f"c{rng.randrange(12)}"], actor="root")
    elif deed < 0.25:
        try:
            lease = reopen(store, account)
        except Refusal:
            return
        _vote(store, account, lease, rng)
    elif (drawn := next_lease(store, account)) is not None and deed < 0.95:
        _vote(store, account, drawn, rng)


def _vote(store: Store, account: str, lease: Any, rng: random.Random) -> None:
    wire: dict[str, Any] = rng.choice(
        [{"outcome": "both_bad"}, {"outcome": "skipped", "reason": "unclear"}, {"outcome": "ranked"},
         {"outcome": "flagged", "reason": "broken"}, {"outcome": "ranked"}, {"outcome": "ranked"}]
    )  # fmt: skip
    if wire["outcome"] == "ranked" and len(lease.order) == 2:
        wire = wire | {"strength": rng.randint(-3, 3)}
    elif wire["outcome"] == "ranked":
        places = list(range(len(lease.order)))
        rng.shuffle(places)
        wire = wire | {"ranking": [[place] for place in places], "confirmed": True}
    cast_vote(store, account, lease.id, wire)


def _desk(store: Store, comparison: Make, add_rater: Add) -> list[str]:
    store.change_settings(DeskSettings(gold_share=0, repeat_share=0.2, repeat_after=1), author="root")
    for at in range(12):
        texts = ("Paris.", "Lyon.", "Nice.")[: 2 + at % 2]
        item = comparison(f"c{at}", *texts, question=f"{at // 2}?")
        queue_comparisons(store, [item], votes_wanted=2, queue=("q", "r")[at % 3 == 0])
    return [add_rater(store, name) for name in ("ada", "bob", "eve", "zoe")]


def test_the_counts_are_those_of_the_rows_whatever_is_done(store: Store, comparison: Make, add_rater: Add) -> None:
    rng = random.Random(7)
    people = _desk(store, comparison, add_rater)
    for step in range(60):
        _act(store, people, rng)
        if step % 6 == 0:
            assert _now(store) == _by_hand(store), step
        if step == 30:
            assert fold(store) > 30
    sweep(store)
    assert _now(store) == _by_hand(store)
    assert waiting(store) == sum(one["wanted"] - one["taken"] for one in _by_hand(store).values())
    assert fold(store) > fold(store) > 0  # folded twice it is no shorter, and no other
    assert _now(store) == _by_hand(store)
    with store.read() as connection:
        given = select(schema.votes.c.id).where(schema.votes.c.purpose != "trial")
        assert desk_standing(store).votes == len(connection.execute(given).all())


def test_alpha_is_that_of_all_votes_read_at_once(store: Store, comparison: Make, add_rater: Add) -> None:
    """Rankings of three, ties, flags, changed votes, votes left out and brought back."""
    rng = random.Random(3)
    people = _desk(store, comparison, add_rater)
    for step in range(48):
        _act(store, people, rng)
        if step % 8 == 7:
            bring_up_to_date(store, at_most=rng.randint(1, 5))
            found = {one.queue: one for one in queue_standings(store)}
            for queue in ("q", "r"):
                cast = read_votes(store, Filter(queue=queue))
                figures = agreement_figures(cast.comparisons, cast.votes)
                [right] = [one for one in figures if (one.of, one.statistic) == ("verdict", "krippendorff_alpha")]
                assert found[queue].units == right.units
                assert found[queue].alpha == (None if right.value is None else pytest.approx(right.value))


def test_a_copy_counts_what_it_holds(store: Store, sqlite_store: Store, comparison: Make, add_rater: Add) -> None:
    if store is sqlite_store:
        pytest.skip("the copy is of PostgreSQL")
    people = _desk(store, comparison, add_rater)
    for seed in range(25):
        _act(store, people, random.Random(seed))
    copy_store(store, sqlite_store)
    assert _now(sqlite_store) == _by_hand(sqlite_store) == _by_hand(store)


@contextmanager
def statements(store: Store) -> Iterator[list[str]]:
    """What the store asks the database meanwhile."""
    said: list[str] = []

    def hear(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        said.append(statement)

    event.listen(store.engine, "before_cursor_execute", hear)
    try:
        yield said
    finally:
        event.remove(store.engine, "before_cursor_execute", hear)


@pytest.mark.parametrize("look", ["collection", "queues", "desk", "waiting", "progress"])
def test_a_look_reads_no_text_and_asks_no_more_where_there_is_more(
    store: Store, comparison: Make, add_rater: Add, tmp_path: Any, look: str
) -> None:
    ada = add_rater(store, "ada")
    open_collection(store, "default", CollectionTarget(pairs=500))
    looks: dict[str, Callable[[], Any]] = {
        "collection": lambda: settle_collections(store, tmp_path, lambda *_: None),
        "queues": lambda: queue_standings(store, agreeing=False), "desk": lambda: desk_standing(store),
        "waiting": lambda: waiting(store), "progress": lambda: ProgressBook(store).of(ada),
    }  # fmt: skip
    asked = []
    for many in (3, 300):
        queue_comparisons(store, [comparison(f"{many}-{at}") for at in range(many)], votes_wanted=2)
        with statements(store) as said:
            looks[look]()
        asked.append(len(said))
        assert not [one for one in said if "responses" in one]
    assert asked[0] == asked[1]


@pytest.mark.parametrize("policy", ["random", "least_voted", "most_informative"])
def test_a_draw_walks_along_what_may_be_drawn_and_sorts_nothing(
    sqlite_store: Store, comparison: Make, policy: str
) -> None:
    queue_comparisons(sqlite_store, [comparison(f"c{at}") for at in range(300)], votes_wanted=1)
    query = next_comparison._work(policy, True if policy == "random" else None)
    compiled = query.params(**_NOBODY).compile(sqlite_store.engine, compile_kwargs=_WRITTEN_OUT)
    with sqlite_store.read() as connection:
        steps = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}".replace("?", "-1"))
        plan = " | ".join(str(row[-1]) for row in steps)
    assert f"ix_comparisons_queue_{policy}" in plan
    assert "TEMP B-TREE" not in plan


def test_the_queues_with_work_are_found_by_a_step_of_an_index_each(sqlite_store: Store, comparison: Make) -> None:
    for queue in ("a", "b", "c"):
        queue_comparisons(sqlite_store, [comparison(f"{queue}{at}") for at in range(100)], votes_wanted=1, queue=queue)
    with sqlite_store.write() as connection:
        connection.execute(update(schema.comparisons).where(schema.comparisons.c.queue == "b").values(taken=1))
    with sqlite_store.read() as connection:
        assert connection.execute(queue_access._WITH_ROOM).scalars().all() == ["a", "c"]
        compiled = queue_access._WITH_ROOM.compile(sqlite_store.engine, compile_kwargs=_WRITTEN_OUT)
        steps = [str(row[-1]) for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}")]
    assert [one for one in steps if "comparisons" in one and "ix_comparisons_queue_" not in one] == []
    assert not [one for one in steps if "TEMP B-TREE" in one]


def test_postgresql_walks_too(new_database: Callable[[], str], comparison: Make, add_rater: Add) -> None:
    store = Store.open(new_database())
    queue_comparisons(store, [comparison(f"c{at}") for at in range(2_000)], votes_wanted=1)
    for policy in ("random", "least_voted", "most_informative"):
        query = next_comparison._locking(next_comparison._work(policy, True if policy == "random" else None), True)
        with store.read() as connection:
            compiled = query.params(**_NOBODY).compile(store.engine, compile_kwargs=_WRITTEN_OUT)
            plan = "\n".join(row[0] for row in connection.exec_driver_sql(f"EXPLAIN {compiled}".replace("%", "%%")))
        assert f"ix_comparisons_queue_{policy}" in plan, plan
        assert "Sort" not in plan, plan
    store.close()
