"""What a token that reads gets: votes and records by pages, raters under pseudonyms."""

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import update

from alignment.records import Comparison
from preference_ui.labelling.assignment import next_lease
from preference_ui.labelling.exclusion import exclude_rater
from preference_ui.labelling.queue import queue_comparisons
from preference_ui.labelling.revision import reopen
from preference_ui.labelling.ruling import adjudicate
from preference_ui.labelling.voting import cast_vote
from preference_ui.store import schema
from preference_ui.store.settings import DeskSettings
from preference_ui.store.store import Store

Make = Callable[..., Comparison]


def _plain(store: Store) -> None:
    """No gold and no repeats: every draw is work."""
    store.change_settings(DeskSettings(gold_share=0, repeat_share=0), author="root")


def _vote(store: Store, account: str, verdict: dict[str, Any]) -> str:
    lease = next_lease(store, account)
    assert lease is not None
    return cast_vote(store, account, lease.id, verdict).vote_id


def _pseudonym(account: str) -> str:
    return "rater-" + hashlib.sha256(account.encode()).hexdigest()[:8]


def _all_pages(api: Any, token: str, path: str, key: str, limit: int) -> list[Any]:
    found, cursor = [], None
    for _ in range(50):
        page = api.get(path, token, params={"limit": limit} | ({"cursor": cursor} if cursor else {})).json()
        assert len(page[key]) <= limit
        found += page[key]
        cursor = page["next"]
        if cursor is None:
            return found
    raise AssertionError("the pages have no end")


def test_votes_come_in_pages_each_once_and_superseded_and_excluded_ones_not_at_all(
    api: Any, comparison: Make, add_rater: Callable[..., str]
) -> None:
    _plain(api.store)
    queue_comparisons(api.store, [comparison(f"c{at}") for at in range(4)], votes_wanted=3)
    raters = [add_rater(api.store, name) for name in ("ada", "bob", "eve")]
    given = [_vote(api.store, rater, {"outcome": "both_bad"}) for _ in range(3) for rater in raters]
    cast_vote(api.store, raters[0], reopen(api.store, raters[0]).id, {"outcome": "flagged", "reason": "broken"})
    exclude_rater(api.store, raters[2], actor="root", reason="spam")
    token = api.token("read")
    pages = _all_pages(api, token, "/votes", "votes", 2)
    mine = [one for at, one in enumerate(given) if at % 3 != 2 and at != 6]  # not eve's, and ada's newest was changed
    assert [one["id"] for one in pages[:-1]] == mine
    assert (pages[-1]["outcome"], pages[-1]["supersedes"]) == ("flagged", given[6])
    assert {one["rater"] for one in pages} == {_pseudonym("id-ada"), _pseudonym("id-bob")}
    assert [one["id"] for one in api.get("/votes", token).json()["votes"]] == [one["id"] for one in pages]


def test_votes_are_chosen_by_queue_whether_it_is_large_or_small(
    api: Any, comparison: Make, add_rater: Callable[..., str]
) -> None:
    _plain(api.store)
    ada, token = add_rater(api.store, "ada"), api.token("read")
    for queue, many in (("small", 1), ("large", 40)):  # a fortieth of the votes, and nearly all
        queue_comparisons(api.store, [comparison(f"{queue}{at}") for at in range(many)], votes_wanted=1, queue=queue)
        for _ in range(many):
            _vote(api.store, ada, {"outcome": "both_bad"})
    for queue, many in (("small", 1), ("large", 40), ("none", 0)):
        found = api.get("/votes", token, params={"queue": queue}).json()["votes"]
        assert [one["comparison_id"].startswith(queue) for one in found] == [True] * many
    pages: list[int] = []
    cursor = None
    while cursor is not None or not pages:
        parameters = {"queue": "large", "limit": 7} | ({"cursor": cursor} if cursor else {})
        reply = api.get("/votes", token, params=parameters).json()
        pages.append(len(reply["votes"]))
        cursor = reply["next"]
    assert pages == [7, 7, 7, 7, 7, 5]


def test_votes_of_one_moment_are_not_lost_between_pages(
    api: Any, comparison: Make, add_rater: Callable[..., str]
) -> None:
    _plain(api.store)
    queue_comparisons(api.store, [comparison("c")], votes_wanted=5)
    moment = datetime(2026, 5, 1, tzinfo=UTC)
    for at in range(5):
        rater = add_rater(api.store, f"r{at}")
        lease = next_lease(api.store, rater)
        assert lease is not None
        with api.store.write() as connection:
            row = {"id": f"v{at}", "lease_id": lease.id, "comparison_id": "c", "account_id": rater, "purpose": "work",
                   "outcome": "both_bad", "ranking": [], "criteria": {}, "seconds": 1.0, "created": moment}  # fmt: skip
            connection.execute(schema.votes.insert().values(row))
    for limit in (1, 2, 3, 5):
        assert [one["id"] for one in _all_pages(api, api.token("read"), "/votes", "votes", limit)] == [
            f"v{at}" for at in range(5)
        ]
    token = api.token("read")
    for since, many in ((moment, 5), (moment + timedelta(seconds=1), 0)):
        assert len(api.get("/votes", token, params={"since": since.isoformat()}).json()["votes"]) == many
        assert len(api.get("/votes", token, params={"until": since.isoformat()}).json()["votes"]) == 5 - many
    assert len(api.get("/votes", token, params={"queue": "other"}).json()["votes"]) == 0


def test_a_record_is_whole_and_names_nobody(api: Any, comparison: Make, add_rater: Callable[..., str]) -> None:
    _plain(api.store)
    queue_comparisons(api.store, [comparison("c", "Paris.", "Lyon."), comparison("d")], votes_wanted=2, queue="towns")
    root, ada = add_rater(api.store, "root", role="administrator"), add_rater(api.store, "ada")
    with api.store.write() as connection:  # ada gets c
        connection.execute(update(schema.comparisons).where(schema.comparisons.c.id == "d").values(withdrawn=True))
    flagged = _vote(api.store, ada, {"outcome": "flagged", "reason": "personal_data", "comment": "a phone number"})
    lease = reopen(api.store, ada)
    verdict = {"outcome": "ranked", "strength": 0, "comment": "level",
               "correction": {"position": lease.order.index("c-b"), "text": "Paris, of course."}}  # fmt: skip
    changed = cast_vote(api.store, ada, lease.id, verdict).vote_id
    ruling = adjudicate(api.store, root, "c", {"outcome": "ranked", "strength": -2})
    token = api.token("read")
    one = api.get("/records/c", token).json()
    assert (one["id"], one["queue"], one["held"], one["withdrawn"], one["votes_wanted"]) == (
        "c", "towns", True, False, 2,
    )  # fmt: skip
    assert one["prompt"]["messages"] == [{"role": "user", "content": "What is the capital of France?"}]
    assert [(answer["text"], answer["model"]) for answer in one["responses"]] == [
        ("Paris.", "secret-model-0"), ("Lyon.", "secret-model-1"),
    ]  # fmt: skip
    first, second, third = one["votes"]
    assert (first["id"], first["reason"], first["comment"], first["superseded"]) == (
        flagged, "personal_data", "a phone number", True,
    )  # fmt: skip
    assert (second["id"], second["supersedes"], second["ranking"]) == (changed, flagged, [list(lease.order)])
    assert second["correction"] == {"response": "c-b", "text": "Paris, of course."}
    assert (third["id"], third["purpose"], third["ranking"]) == (ruling, "ruling", [["c-a"], ["c-b"]])
    assert [(line["actor"], line["action"]) for line in one["trail"]] == [
        (_pseudonym("id-ada"), "comparison.hold"), (_pseudonym("id-root"), "comparison.adjudicate"),
    ]  # fmt: skip
    assert {vote["rater"] for vote in one["votes"]} == {_pseudonym("id-ada"), f"{_pseudonym('id-root')}-ruling"}
    listed = _all_pages(api, token, "/records", "records", 1)
    assert [record["id"] for record in listed] == ["c", "d"]
    assert listed[0] == one
    assert api.get("/records", token, params={"queue": "other"}).json() == {"records": [], "next": None}
    voted = api.get("/records", token, params={"since": "2000-01-01T00:00:00"}).json()["records"]
    assert [record["id"] for record in voted] == ["c"]


def test_queues_say_how_far_they_are_and_agree(api: Any, comparison: Make, add_rater: Callable[..., str]) -> None:
    _plain(api.store)
    queue_comparisons(api.store, [comparison("c"), comparison("d")], votes_wanted=2, queue="towns")
    raters = [add_rater(api.store, name) for name in ("ada", "bob")]
    for rater in raters:
        for _ in range(2):
            lease = next_lease(api.store, rater)
            assert lease is not None
            best = lease.order.index(f"{lease.comparison.id}-{'a' if lease.comparison.id == 'c' else 'b'}")
            cast_vote(api.store, rater, lease.id, {"outcome": "ranked", "strength": -2 if best == 0 else 2})
    assert api.get("/queues", api.token("read")).json() == {
        "queues": [{"queue": "towns", "comparisons": 2, "complete": 2, "votes": 4, "wanted": 4, "raters": 2,
                    "alpha": 1.0, "units": 2}],  # all agree
        "votes": 4, "open_leases": 0, "raters_at_work": 2,
    }  # fmt: skip


INJECTIONS = ["'", "' OR '1'='1", "x; DROP TABLE votes", "%", "\\", "<script>", "ünï", "../../etc/passwd", "a" * 200]


@pytest.mark.parametrize("text", INJECTIONS)
def test_strange_texts_find_nothing_and_break_nothing(api: Any, comparison: Make, text: str) -> None:
    queue_comparisons(api.store, [comparison("c")], votes_wanted=1)
    token = api.token("read")
    for path in ("/votes", "/records"):
        found = api.get(path, token, params={"queue": text})
        assert (found.status_code, next(iter(found.json().values()))) == (200, [])
    assert api.get("/votes", token, params={"cursor": text}).status_code == 422
    assert api.get("/records", token, params={"cursor": text}).status_code == 200
    assert api.client.get(f"/api/v1/records/{text.replace('%', '%25')}").status_code == 401
    assert api.get(f"/records/{text.replace('%', '%25')}", token).status_code == 404
    assert len(api.get("/records", token).json()["records"]) == 1


@pytest.mark.parametrize(
    "parameters",
    [{"limit": 0}, {"limit": 501}, {"limit": "x"}, {"cursor": "\0"}, {"queue": "a\0"}, {"since": "yesterday"},
     {"queue": "x" * 201}, {"until": "9" * 400}],
)  # fmt: skip
def test_parameters_out_of_bounds_are_refused_by_name(api: Any, parameters: dict[str, Any]) -> None:
    for path in ("/votes", "/records"):
        reply = api.get(path, api.token("read"), params=parameters)
        assert reply.status_code == 422
        assert [fault["field"] for fault in reply.json()["faults"]] == list(parameters)


def test_a_path_that_is_none_and_a_method_that_is_none(api: Any) -> None:
    token = api.token("read")
    assert api.get("/records/a%00b", token).status_code == 422
    for method, path, status in (("GET", "/nothing", 404), ("POST", "/votes", 405), ("PUT", "/votes", 405),
                                 ("GET", "/votes/", 404),
                                 ("DELETE", "/records/c", 405)):  # fmt: skip
        reply = api.call(method, path, token)
        assert reply.status_code == status
        assert set(reply.json()) == {"detail", "code"}
