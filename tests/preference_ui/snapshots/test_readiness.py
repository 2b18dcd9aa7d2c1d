"""Whether a collection may be ready is reckoned from counts: it never hides one that is, and spares reading in vain."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment.records import Comparison
from preference_ui.import_export import Filter, read_votes
from preference_ui.labelling.assignment import next_lease
from preference_ui.labelling.queue import queue_comparisons
from preference_ui.labelling.voting import cast_vote
from preference_ui.snapshots import collections as module
from preference_ui.snapshots.collections import CollectionTarget, open_collection, settle_collections
from preference_ui.snapshots.readiness import Lookout, can_be_ready
from preference_ui.store.settings import DeskSettings
from preference_ui.store.store import Store

Make = Callable[..., Comparison]
Add = Callable[..., str]


@pytest.fixture
def desk(sqlite_store: Store, comparison: Make, add_rater: Add) -> Store:
    sqlite_store.change_settings(DeskSettings(gold_share=0, repeat_share=0), author="root")
    for name in ("ada", "bob", "eve"):
        add_rater(sqlite_store, name)
    items = [comparison(f"c{at}", "Paris.", "Lyon.", "Nice.") if at == 5 else comparison(f"c{at}") for at in range(8)]
    queue_comparisons(sqlite_store, items, votes_wanted=2)
    return sqlite_store


def _vote(store: Store, rng: random.Random) -> None:
    account = f"id-{rng.choice(('ada', 'bob', 'eve'))}"
    lease = next_lease(store, account)
    if lease is None:
        return
    wire: dict[str, Any] = {"outcome": "both_bad"}
    if rng.random() < 0.5 and len(lease.order) == 2:
        wire = {"outcome": "ranked", "strength": rng.choice((-2, 2))}
    if rng.random() < 0.2:
        wire |= {"correction": {"position": 0, "text": f"Better {rng.random()}."}}
    cast_vote(store, account, lease.id, wire)


@pytest.mark.parametrize("seed", [1, 2])
def test_what_is_ready_is_never_reckoned_away(desk: Store, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(16):
        _vote(desk, rng)
        for per in (1, 2):
            pairs = len(read_votes(desk, Filter(min_votes=per)).pairs(0.0))
            if pairs:
                assert can_be_ready(desk, "default", per, pairs) is not None


def test_votes_are_read_only_where_there_are_enough(
    desk: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    def reading(store: Store, chosen: Filter) -> Any:
        read.append(1)
        return read_votes(store, chosen)

    monkeypatch.setattr(module, "read_votes", reading)
    open_collection(desk, "default", CollectionTarget(votes_per_comparison=2, pairs=3))
    for _ in range(5):
        lease = next_lease(desk, "id-ada")
        assert lease is not None
        cast_vote(desk, "id-ada", lease.id, {"outcome": "both_bad"})
        assert settle_collections(desk, tmp_path, lambda *_: None) == []
    assert read == []  # nobody has judged what another had


def test_reading_in_vain_takes_a_hundredth_of_the_time(desk: Store) -> None:
    """Reading took two seconds and found three pairs too few: 40 s later where three votes came, else after 200 s."""
    time = [1_000.0]
    lookout = Lookout(clock=lambda: time[0])
    for _ in range(4):
        lease = next_lease(desk, "id-ada")
        assert lease is not None
        cast_vote(desk, "id-ada", lease.id, {"outcome": "both_bad"})
    tally = can_be_ready(desk, "default", 1, 1, lookout)
    assert tally is not None
    tally.wide = 0
    lookout.missed("default", tally, 6, seconds=2.0)  # a vote may make two pairs: one of them a correction
    lookout.read["default"].votes = 3

    def due(moment: float) -> bool:
        time[0] = 1_000.0 + moment
        return can_be_ready(desk, "default", 1, 1, lookout) is not None

    assert [due(5), due(41), due(199), due(201)] == [False, False, False, True]
    rng = random.Random(0)
    for _ in range(5):
        _vote(desk, rng)
    assert [due(39), due(41)] == [False, True]
