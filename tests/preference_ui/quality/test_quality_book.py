"""The figures about raters are made when there is something new, of a bounded number of votes, while nobody waits."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from alignment.records import Comparison
from preference_ui.labelling.assignment import next_lease
from preference_ui.labelling.queue import queue_comparisons
from preference_ui.labelling.voting import cast_vote
from preference_ui.quality import quality_book
from preference_ui.quality.quality_book import QualityBook
from preference_ui.quality.rater_quality import quality_report
from preference_ui.store.settings import DeskSettings
from preference_ui.store.store import Store


@pytest.fixture
def desk(sqlite_store: Store, comparison: Callable[..., Comparison], add_rater: Callable[..., str]) -> Store:
    sqlite_store.change_settings(DeskSettings(gold_share=0, repeat_share=0), author="root")
    queue_comparisons(sqlite_store, [comparison(f"c{at}") for at in range(6)], votes_wanted=2)
    for name in ("ada", "bob"):
        add_rater(sqlite_store, name)
        for _ in range(2):
            _vote(sqlite_store, name)
    return sqlite_store


def _vote(store: Store, name: str) -> None:
    lease = next_lease(store, f"id-{name}")
    assert lease is not None
    cast_vote(store, f"id-{name}", lease.id, {"outcome": "ranked", "strength": 1})


def _counting(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    made: list[int] = []

    def count(store: Store, **options: Any) -> Any:
        made.append(1)
        return quality_report(store, **options)

    monkeypatch.setattr(quality_book, "quality_report", count)
    return made


def test_a_small_desk_has_its_figures_at_once_and_again_only_after_a_vote(
    desk: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = _counting(monkeypatch)
    book = QualityBook(desk)
    report, renewing = book.now()
    assert report is not None
    assert (report.votes, renewing) == (4, False)
    assert book.now()[0] is report
    assert len(made) == 1
    _vote(desk, "ada")
    again, _renewing = book.now()
    assert again is not None
    assert (again.votes, len(made)) == (5, 2)


def test_a_large_one_is_told_that_they_are_being_made(desk: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality_book, "AT_ONCE", 1)
    book = QualityBook(desk)
    assert book.now() == (None, True)
    end = time.monotonic() + 120
    while (found := book.now())[0] is None:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert found[0].votes == 4


def test_the_figures_rest_on_the_newest_votes(desk: Store) -> None:
    assert quality_report(desk, newest=4).newest is None  # there are no more
    report = quality_report(desk, newest=2)  # bob's
    assert (report.votes, report.newest) == (2, 2)
    assert [rater.votes for rater in report.raters] == [0, 2]
