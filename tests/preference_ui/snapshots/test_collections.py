import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import select

from alignment.errors import InputError
from alignment.records import Comparison
from preference_ui.import_export import Export
from preference_ui.labelling.assignment import next_lease
from preference_ui.labelling.queue import queue_comparisons
from preference_ui.labelling.voting import cast_vote
from preference_ui.snapshots.collections import (
    CollectionTarget,
    Watcher,
    find_collection,
    open_collection,
    settle_collections,
)
from preference_ui.store.schema import comparisons
from preference_ui.store.settings import DeskSettings
from preference_ui.store.store import Store

Make = Callable[..., Comparison]
Add = Callable[..., str]


def _vote_all(store: Store, account: str) -> None:
    while (lease := next_lease(store, account)) is not None:
        first = lease.order[0].endswith("-a")
        cast_vote(store, account, lease.id, {"outcome": "ranked", "strength": -1 if first else 1})


@pytest.fixture
def waiting(store: Store, comparison: Make) -> Store:
    """Three comparisons in the queue "round-1" that each want two votes, and one in another queue."""
    store.change_settings(DeskSettings(gold_share=0, repeat_share=0), author="root")
    items = [comparison(name, "Paris.", "Lyon.", question=f"{name}?") for name in ("c0", "c1", "c2")]
    queue_comparisons(store, items, votes_wanted=2, queue="round-1")
    queue_comparisons(store, [comparison("other")], votes_wanted=2, queue="elsewhere")
    open_collection(store, "round-1", CollectionTarget(votes_per_comparison=2, pairs=3))
    return store


def test_a_collection_is_announced_once_when_its_condition_holds(
    waiting: Store, add_rater: Add, tmp_path: Path
) -> None:
    said: list[tuple[str, Export]] = []

    def settle() -> list[str]:
        return settle_collections(waiting, tmp_path, lambda queue, export: said.append((queue, export)))

    assert settle() == []
    _vote_all(waiting, add_rater(waiting, "ada"))
    assert settle() == []  # one vote each is not enough
    _vote_all(waiting, add_rater(waiting, "bob"))
    assert settle() == ["round-1"]
    assert settle() == []
    ((queue, export),) = said
    assert (queue, export.rows, export.votes, export.raters) == ("round-1", 3, 6, 2)
    rows = [json.loads(line) for line in (tmp_path / "round-1.jsonl").read_text().splitlines()]
    assert {row["prompt"][0]["content"] for row in rows} == {"c0?", "c1?", "c2?"}
    found = find_collection(waiting, "round-1")
    assert found is not None
    assert found.snapshot == export
    actions = [line["action"] for line in waiting.audit_trail(subject="round-1")]
    assert actions == ["collection.announce", "collection.ready", "collection.open"]


def test_a_failed_announcement_is_repeated_with_the_same_snapshot(
    waiting: Store, add_rater: Add, tmp_path: Path
) -> None:
    for name in ("ada", "bob"):
        _vote_all(waiting, add_rater(waiting, name))
    tried: list[str] = []

    def fails(_queue: str, export: Export) -> None:
        tried.append(export.digest)
        raise ConnectionError("nobody listens")

    assert settle_collections(waiting, tmp_path, fails) == []
    assert settle_collections(waiting, tmp_path, lambda _queue, export: tried.append(export.digest)) == ["round-1"]
    assert len(tried) == 2
    assert len(set(tried)) == 1


def test_opened_again_it_waits_for_the_new_condition_and_a_bad_name_is_refused(waiting: Store) -> None:
    open_collection(waiting, "round-1", CollectionTarget(pairs=99, votes_per_comparison=4))
    found = find_collection(waiting, "round-1")
    assert found is not None
    assert found.condition.pairs == 99
    with waiting.read() as connection:
        wanted = connection.execute(select(comparisons.c.votes_wanted).where(comparisons.c.queue == "round-1"))
        assert set(wanted.scalars()) == {4}
    assert find_collection(waiting, "none") is None
    with pytest.raises(InputError, match="no name of a queue"):
        open_collection(waiting, "../escape", CollectionTarget())


def test_the_watcher_notices_the_last_vote_and_repeats_what_failed(
    waiting: Store, add_rater: Add, tmp_path: Path
) -> None:
    said: list[str] = []
    failures = iter([ConnectionError("nobody listens yet")])

    def announce(queue: str, _export: Export) -> None:
        for failure in failures:
            raise failure
        said.append(queue)

    watcher = Watcher(waiting, tmp_path, announce, seconds=0.05)
    watcher.start()
    for name in ("ada", "bob"):
        _vote_all(waiting, add_rater(waiting, name))
    end = time.monotonic() + 30
    while not said and time.monotonic() < end:
        time.sleep(0.05)
    watcher.stop()
    assert said == ["round-1"]
