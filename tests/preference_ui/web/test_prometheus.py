"""The queues' standing by hand, and /metrics over HTTP: what it says, and who may read it."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from alignment.records import Comparison
from preference_ui.labelling.assignment import next_lease
from preference_ui.labelling.queue import queue_comparisons
from preference_ui.labelling.voting import cast_vote
from preference_ui.quality.queue_stats import desk_standing, queue_standings, standing_text
from preference_ui.store.store import Store
from preference_ui.web.prometheus import TOKEN, AppMetrics

Make = Callable[..., Comparison]


def vote(store: Store, account: str, better: str = "a") -> None:
    """The next comparison, with the answer whose id ends in ``better`` preferred."""
    lease = next_lease(store, account)
    assert lease is not None
    first = lease.order[0].endswith(better)
    cast_vote(store, account, lease.id, {"outcome": "ranked", "strength": -2 if first else 2})


def test_a_queue_by_hand(store: Store, comparison: Make, add_rater: Callable[..., str]) -> None:
    """Two comparisons of two votes each: one whole and agreed, one with a vote and a lease in hand."""
    queue_comparisons(store, [comparison("one"), comparison("two")], votes_wanted=2, queue="q")
    queue_comparisons(store, [comparison("three")], votes_wanted=1, queue="r")
    ada, bob = add_rater(store, "ada"), add_rater(store, "bob")
    for _ in range(3):
        vote(store, ada)
    assert next_lease(store, bob) is not None
    found = {one.queue: one for one in queue_standings(store)}
    assert [(one.comparisons, one.complete, one.votes, one.wanted, one.raters) for one in found.values()] == [
        (2, 0, 2, 4, 1), (1, 1, 1, 1, 1),
    ]  # fmt: skip
    assert found["q"].alpha is None  # nobody judged what another had
    vote(store, bob)
    [whole, _rest] = queue_standings(store)
    assert (whole.complete, whole.votes, whole.open, whole.raters, whole.units) == (1, 3, 1, 2, 1)
    vote(store, bob, better="b")
    [whole, _rest] = queue_standings(store)
    # a a on one, a b on the other. α = 1 − D_o / D_e, nominal: D_o = 2 of 4 pairable values, D_e = 2·3·1 / (4·3).
    assert whole.alpha == pytest.approx(1 - (2 / 4) / (2 * 3 * 1 / (4 * 3)))
    desk = desk_standing(store)
    assert (desk.open_leases, desk.raters_at_work, desk.votes) == (0, 2, 5)
    assert "| q | 2 | 2 | 4 | 4 | 2 | 0.00 on 2 |" in standing_text(queue_standings(store))
    assert standing_text([]) == "Nothing is queued for raters."


def test_prometheus_reads_it(sqlite_store: Store, comparison: Make, add_rater: Callable[..., str]) -> None:
    from prometheus_client import generate_latest
    from prometheus_client.parser import text_string_to_metric_families

    queue_comparisons(sqlite_store, [comparison("one"), comparison("two")], votes_wanted=1, queue='a "q"')
    vote(sqlite_store, add_rater(sqlite_store, "ada"))
    text = generate_latest(AppMetrics(sqlite_store).registry).decode()
    values = {
        (sample.name, sample.labels.get("queue", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert values["rlhf_votes_total", ""] == 1
    assert values["rlhf_queue_open", 'a "q"'] == 1
    assert values["rlhf_queue_votes_wanted", 'a "q"'] == 2
    assert values["rlhf_raters_at_work", ""] == 1
    assert ("rlhf_queue_alpha", 'a "q"') not in values  # undefined
    assert "ada" not in text


def test_who_may_read(running_app: Any) -> None:
    """An administrator, and nobody else: this app was started without a token."""
    stranger = httpx.Client(base_url=running_app.url)
    for headers in ({}, {"Authorization": "Bearer"}, {"Authorization": "Bearer x"}):
        assert stranger.get("/metrics", headers=headers).status_code == 404
    assert running_app.sign_in("ada").get("/metrics").status_code == 404
    stranger.get("/nothing/of/the/kind")
    text = running_app.sign_in("root", role="administrator").get("/metrics").text
    assert 'rlhf_request_seconds_count{method="GET",page="metrics",status="4xx"}' in text
    assert 'page="other"' in text
    assert "nothing" not in text  # what strangers ask for makes no series


def test_the_token(sqlite_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from starlette.requests import Request

    def status(header: str) -> int:
        scope = {"type": "http", "method": "GET", "path": "/metrics", "headers": [(b"authorization", header.encode())]}
        return AppMetrics(sqlite_store).page(Request(scope)).status_code

    monkeypatch.setenv(TOKEN, "a token")
    assert [status(one) for one in ("Bearer a token", "Bearer another", "a token", "")] == [200, 404, 404, 404]
    monkeypatch.setenv(TOKEN, "")
    assert status("Bearer ") == 404
