"""The raters' hours and answers as tables that no spreadsheet runs."""

import csv
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import insert

from alignment.errors import InputError
from alignment.records import Comparison
from preference_ui.accounts.auth import authenticate
from preference_ui.accounts.links import join, make_link
from preference_ui.labelling.consent import answer_before_work, asked_before_work
from preference_ui.labelling.queue import queue_comparisons
from preference_ui.quality.people_report import write_consents, write_times
from preference_ui.store import schema
from preference_ui.store.settings import DeskSettings, RaterQuestion
from preference_ui.store.store import Store

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _vote(store: Store, account: str, at: int, minutes: float) -> None:
    ended = NOON + timedelta(hours=at)
    of = {"comparison_id": f"c{at}", "account_id": account, "purpose": "work"}
    lease = of | {"id": f"l{account[:9]}{at}", "state": "voted", "order": [], "drawn_by": "random", "queue": "code",
                  "holds_place": False, "created": ended - timedelta(minutes=minutes), "expires": ended}  # fmt: skip
    vote = of | {"id": f"v{account[:9]}{at}", "lease_id": lease["id"], "outcome": "both_bad", "ranking": [],
                 "criteria": {}, "seconds": 60 * minutes, "created": ended}  # fmt: skip
    with store.write() as connection:
        connection.execute(insert(schema.leases).values(lease))
        connection.execute(insert(schema.votes).values(vote))


def test_hours_are_paid_by_the_rate_and_cut_at_the_bound(
    store: Store, comparison: Callable[..., Comparison], add_rater: Callable[..., str], tmp_path: Path
) -> None:
    path = tmp_path / "times.csv"
    with pytest.raises(InputError, match="nobody has voted"):
        write_times(store, path)
    assert not path.exists()
    store.change_settings(DeskSettings(hourly_rate=12, idle_minutes=10), author="root")
    queue_comparisons(store, [comparison(f"c{at}") for at in range(2)], votes_wanted=2, queue="code")
    token = make_link(store, places=1, created_by="root")
    came = authenticate(store, join(store, token, "5f3a"))
    assert came is not None
    ada = add_rater(store, "ada")
    for at, minutes in enumerate((6, 90)):  # ninety are ten
        _vote(store, ada, at, minutes)
    _vote(store, came.id, 0, 3)
    assert write_times(store, path) == 2
    assert _rows(path) == [
        {"rater": "ada", "external_id": "", "queue": "code", "votes": "2", "active_hours": "0.2667",
         "idle_minutes": "10", "hourly_rate": "12", "pay": "3.20", "first": "2026-01-02T12:00:00+00:00",
         "last": "2026-01-02T13:00:00+00:00"},
        {"rater": came.name, "external_id": "5f3a", "queue": "code", "votes": "1", "active_hours": "0.0500",
         "idle_minutes": "10", "hourly_rate": "12", "pay": "0.60", "first": "2026-01-02T12:00:00+00:00",
         "last": "2026-01-02T12:00:00+00:00"},
    ]  # fmt: skip
    assert write_times(store, path, hourly_rate=6, idle_minutes=5) == 2
    assert [row["pay"] for row in _rows(path)] == ["1.00", "0.30"]
    for wrong, said in ((tmp_path / "times.xlsx", "use .csv"), (tmp_path / "none/times.csv", "cannot be written")):
        with pytest.raises(InputError, match=said):
            write_times(store, wrong)


def test_answers_are_a_column_each_and_nothing_is_a_formula(
    store: Store, add_rater: Callable[..., str], tmp_path: Path
) -> None:
    path = tmp_path / "consents.csv"
    ada = add_rater(store, "ada")
    with pytest.raises(InputError, match="no rater was asked"):
        write_consents(store, path)
    question = RaterQuestion(name="job", text="What do you do?", choices=("=1+1", "teach"))
    store.change_settings(DeskSettings(questions=(question,)), author="root")
    asked = asked_before_work(store, ada)
    assert asked is not None
    answer_before_work(store, ada, asked["digest"], True, {"job": "=1+1"})
    assert write_consents(store, path) == 1
    [row] = _rows(path)
    assert (row["rater"], row["agreed"], row["version"], row["job"]) == ("ada", "yes", "1", "'=1+1")
    assert row["pseudonym"].startswith("rater-")
