"""Votes through the API: a rater's own, blind, once, and told apart in the trail."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, update

from alignment.records import Comparison
from preference_ui.accounts.tokens import list_tokens
from preference_ui.labelling.queue import Gold, queue_comparisons, queue_gold
from preference_ui.store import schema
from preference_ui.store.queue_settings import QueueSettings, change_queue
from preference_ui.store.settings import DeskSettings
from preference_ui.store.store import now

Make = Callable[..., Comparison]
Voter = Callable[..., str]


def _draw(api: Any, token: str) -> dict[str, Any]:
    reply = api.post("/leases", token)
    assert reply.status_code == 200, reply.text
    lease: dict[str, Any] = reply.json()["lease"]
    return lease


def _rows(api: Any) -> list[Any]:
    with api.store.read() as connection:
        return list(connection.execute(select(schema.votes).order_by(schema.votes.c.created)))


def _plain(api: Any) -> None:
    api.store.change_settings(DeskSettings(gold_share=0, repeat_share=0), author="root")


def test_a_vote_is_stored_by_what_was_shown_and_marked_in_the_trail(api: Any, comparison: Make, voter: Voter) -> None:
    _plain(api)
    queue_comparisons(api.store, [comparison("c", "Paris.", "Lyon.")], votes_wanted=1)
    token = voter(api, "ada", guidelines_read=2)
    lease = _draw(api, token)
    assert _draw(api, token) == lease  # it stays in this rater's hand
    paris = next(answer["position"] for answer in lease["answers"] if answer["text"] == "Paris.")
    verdict = {"outcome": "ranked", "strength": -3 if paris == 0 else 3, "criteria": {"helpful": [4, 5]},
               "comment": "  clear  ", "correction": {"position": paris, "text": "Paris, France."}}  # fmt: skip
    taken = api.post(f"/leases/{lease['lease']}/vote", token, verdict).json()
    [row] = _rows(api)
    assert taken == {"vote": row.id, "repeated": False, "feedback": None}
    assert (row.account_id, row.ranking, row.strength, row.comment) == ("id-ada", [["c-a"], ["c-b"]], 3, "clear")
    assert row.correction == {"response": "c-a", "text": "Paris, France."}
    shown = ["c-a", "c-b"] if paris == 0 else ["c-b", "c-a"]
    assert row.criteria == {f"helpful:{shown[0]}": 4, f"helpful:{shown[1]}": 5}
    [line] = api.store.audit_trail(subject=row.id)
    [told] = list_tokens(api.store)
    assert (line["actor"], line["action"], line["detail"]["token"]) == ("ada", "vote.cast", told["id"])
    assert api.post("/leases", token).json() == {"lease": None}
    assert api.get("/progress", token).json() == {"done": 1, "left": 0, "minutes": None}


def test_a_vote_sent_again_changes_nothing(api: Any, comparison: Make, voter: Voter) -> None:
    _plain(api)
    queue_comparisons(api.store, [comparison("c"), comparison("d")], votes_wanted=1)
    token = voter(api, "ada", guidelines_read=2)
    path = f"/leases/{_draw(api, token)['lease']}"
    first = api.post(f"{path}/vote", token, {"outcome": "both_bad"}).json()
    again = api.post(f"{path}/vote", token, {"outcome": "ranked", "strength": 1}).json()
    third = api.post(f"{path}/skip", token, {"reason": "unclear"}).json()
    assert again == third == {"vote": first["vote"], "repeated": True, "feedback": None}
    assert [row.outcome for row in _rows(api)] == ["both_bad"]


def test_skip_and_flag_are_told_by_their_reasons(api: Any, comparison: Make, voter: Voter) -> None:
    _plain(api)
    queue_comparisons(api.store, [comparison("c"), comparison("d")], votes_wanted=1)
    token = voter(api, "ada", guidelines_read=2)
    for what, reason in (("skip", "broken"), ("flag", "unclear"), ("skip", ""), ("flag", None)):
        path = f"/leases/{_draw(api, token)['lease']}/{what}"
        assert api.post(path, token, {"reason": reason}).status_code == 422
    body = {"reason": "language", "comment": "no Dutch"}
    assert api.post(f"/leases/{_draw(api, token)['lease']}/skip", token, body).status_code == 200
    body = {"reason": "personal_data"}
    assert api.post(f"/leases/{_draw(api, token)['lease']}/flag", token, body).status_code == 200
    skipped, flagged = _rows(api)
    assert (skipped.outcome, skipped.reason, skipped.comment) == ("skipped", "language", "no Dutch")
    assert (flagged.outcome, flagged.reason) == ("flagged", "personal_data")
    with api.store.read() as connection:
        held = select(schema.comparisons.c.id).where(schema.comparisons.c.held)
        assert connection.execute(held).scalars().all() == [flagged.comparison_id]


def test_rankings_and_thumbs_are_voted_on_as_well(api: Any, comparison: Make, voter: Voter) -> None:
    _plain(api)
    queue_comparisons(api.store, [comparison("r", "one", "two", "three")], votes_wanted=1)
    token = voter(api, "ada", guidelines_read=2)
    lease = _draw(api, token)
    texts = [answer["text"] for answer in lease["answers"]]
    order = [[texts.index("two")], [texts.index("one"), texts.index("three")]]
    path = f"/leases/{lease['lease']}/vote"
    for wrong in ({"outcome": "ranked", "strength": 1}, {"outcome": "ranked", "ranking": [[0], [1]]},
                  {"outcome": "ranked", "ranking": [[0], [0], [1]]}, {"outcome": "up"}):  # fmt: skip
        assert api.post(path, token, wrong).status_code == 422
    assert api.post(path, token, {"outcome": "ranked", "ranking": order}).status_code == 200
    assert [sorted(group) for group in _rows(api)[0].ranking] == [["r-b"], ["r-a", "r-c"]]
    queue_comparisons(api.store, [comparison("t", "alone")], votes_wanted=1)
    lease = _draw(api, token)
    assert [answer["position"] for answer in lease["answers"]] == [0]
    assert api.post(f"/leases/{lease['lease']}/vote", token, {"outcome": "down"}).status_code == 200


def test_nothing_tells_who_wrote_an_answer_and_gold_looks_like_work(api: Any, comparison: Make, voter: Voter) -> None:
    api.store.change_settings(DeskSettings(gold_share=1, repeat_share=0), author="root")
    queue_gold(api.store, [Gold(comparison("gold-secret"), (("gold-secret-a",), ("gold-secret-b",)), "because-secret")])
    queue_comparisons(api.store, [comparison("work-secret")], votes_wanted=1, queue="queue-secret")
    token = voter(api, "ada", guidelines_read=2)
    fields = set()
    for _ in range(2):
        lease = _draw(api, token)
        fields.add(frozenset(lease))
        sent = api.post(f"/leases/{lease['lease']}/vote", token, {"outcome": "both_bad"})
        text = api.post("/leases", token).text + sent.text + str(lease)
        for secret in ("secret", "gold", "work", '"seed"', "purpose", "p-"):
            assert secret not in text
        assert sent.json()["feedback"] is None
    assert {row.purpose for row in _rows(api)} == {"gold", "work"}
    shown = {"lease", "trial", "changes_a_vote", "expires", "prompt", "answers", "single", "criteria", "labels"}
    assert fields == {frozenset(shown)}
    assert set(lease["answers"][0]) == {"position", "text", "names_itself", "cut"}


def test_anothers_lease_is_as_one_that_never_was(api: Any, comparison: Make, voter: Voter) -> None:
    _plain(api)
    queue_comparisons(api.store, [comparison("c")], votes_wanted=2)
    ada, eve = voter(api, "ada", guidelines_read=2), voter(api, "eve", guidelines_read=2)
    lease = _draw(api, ada)["lease"]
    for what, body in (("vote", {"outcome": "both_bad"}), ("skip", {"reason": "unclear"}),
                       ("flag", {"reason": "broken"})):  # fmt: skip
        replies = [api.post(f"/leases/{one}/{what}", eve, body) for one in (lease, "invented", "' OR 1=1 --", "a b")]
        assert {(reply.status_code, reply.text) for reply in replies} == {(404, replies[0].text)}
    assert api.post("/leases/a%00b/vote", eve, {"outcome": "both_bad"}).status_code == 422
    assert _rows(api) == []


def test_a_rater_sees_no_vote_and_no_name_of_anothers(api: Any, comparison: Make, voter: Voter) -> None:
    _plain(api)
    queue_comparisons(api.store, [comparison("c")], votes_wanted=3)
    ada, eve = voter(api, "ada", guidelines_read=2), voter(api, "eve", guidelines_read=2)
    body = {"outcome": "both_bad", "comment": "adas-words"}
    vote = api.post(f"/leases/{_draw(api, ada)['lease']}/vote", ada, body).json()["vote"]
    seen = api.post("/leases", eve).text + api.get("/guidelines", eve).text + api.get("/progress", eve).text
    for path in ("/votes", "/records", "/records/c", "/queues"):
        reply = api.get(path, eve)
        assert reply.status_code == 403
        seen += reply.text
    for secret in ("adas-words", "ada", vote):
        assert secret not in seen


def test_the_guidelines_are_read_first(api: Any, comparison: Make, voter: Voter) -> None:
    queue_comparisons(api.store, [comparison("c")], votes_wanted=1)
    token = voter(api, "ada", guidelines_read=0)
    refused = api.post("/leases", token)
    assert (refused.status_code, refused.json()["code"]) == (409, "guidelines")
    told = api.get("/guidelines", token).json()
    assert (told["version"], told["read"]) == (0, False)
    assert told["text"].startswith("## What to do")
    assert [criterion["name"] for criterion in told["criteria"]] == ["helpful", "truthful", "harmless"]
    assert api.post("/guidelines/read", token, {"version": 1}).status_code == 409
    assert api.post("/guidelines/read", token, {"version": 0}).json()["read"]
    assert _draw(api, token)["answers"]
    api.store.change_settings(DeskSettings(guidelines="Other ones."), author="root")
    assert api.post("/leases", token).status_code == 409


def test_a_queues_own_guidelines_are_read_before_its_work_is_shown(api: Any, comparison: Make, voter: Voter) -> None:
    queue_comparisons(api.store, [comparison("c")], votes_wanted=1, queue="law")
    change_queue(api.store, "law", QueueSettings(guidelines="Only the law counts."), author="root")
    ada, eve = voter(api, "ada"), voter(api, "eve")
    refused = api.post("/leases", ada)
    assert (refused.status_code, refused.json()["code"]) == (409, "guidelines")
    assert "queue=law" in refused.json()["detail"]
    told = api.get("/guidelines?queue=law", ada).json()
    assert (told["queue"], told["text"], told["read"]) == ("law", "Only the law counts.", False)
    wrong = api.post("/guidelines/read", ada, {"queue": "law", "mark": "0" * 64})
    assert wrong.status_code in (409, 422)
    assert api.post("/guidelines/read", ada, {"queue": "law"}).status_code == 422  # no mark
    assert api.post("/guidelines/read", ada, {"queue": "law", "mark": told["mark"]}).json()["read"]
    assert _draw(api, ada)["answers"]
    assert api.post("/leases", eve).status_code in (200, 409)  # the one comparison is taken, or unread


def test_a_queue_of_others_and_a_closed_one_hand_out_nothing(api: Any, comparison: Make, voter: Voter) -> None:
    queue_comparisons(api.store, [comparison("c")], votes_wanted=2, queue="law")
    ada, eve = voter(api, "ada"), voter(api, "eve")
    change_queue(api.store, "law", QueueSettings(raters=("ada",), guidelines="Secret."), author="root")
    assert api.post("/leases", eve).json() == {"lease": None}
    assert api.get("/guidelines?queue=law", eve).json()["queue"] is None  # everybody's
    change_queue(api.store, "law", QueueSettings(open=False), author="root")
    assert api.post("/leases", ada).json() == {"lease": None}


def test_who_has_not_agreed_gets_no_work(api: Any, comparison: Make, voter: Voter) -> None:
    queue_comparisons(api.store, [comparison("c")], votes_wanted=1)
    ada = voter(api, "ada")
    api.store.change_settings(DeskSettings(consent="May we keep your votes?"), author="root")
    refused = api.post("/leases", ada)
    assert (refused.status_code, refused.json()["code"]) == (409, "consent")


def test_the_trial_says_what_is_right(api: Any, comparison: Make, voter: Voter) -> None:
    gold = Gold(comparison("t", "right", "wrong"), (("t-a",), ("t-b",)), "because")
    queue_gold(api.store, [gold], purpose="trial")
    token = voter(api, "ada", trial_passed=False)
    lease = _draw(api, token)
    assert lease["trial"]
    right = next(answer["position"] for answer in lease["answers"] if answer["text"] == "right")
    reply = api.post(
        f"/leases/{lease['lease']}/vote", token, {"outcome": "ranked", "strength": 2 if right == 0 else -2}
    )
    assert reply.json()["feedback"] == {"right": False, "ranking": [[right], [1 - right]], "why": "because"}


@pytest.mark.parametrize(
    "body",
    [{}, [], {"outcome": "x"}, {"outcome": "both_bad", "more": 1}, {"outcome": "ranked", "strength": "2"},
     {"outcome": "ranked", "strength": 4}, {"outcome": "ranked", "strength": 1, "comment": "x" * 2_001},
     {"outcome": "ranked", "strength": 1, "comment": "nul\0"}, {"outcome": "ranked", "strength": 1, "reason": "broken"},
     {"outcome": "ranked", "strength": 1, "criteria": {"'; DROP TABLE votes": [1, 2]}},
     {"outcome": "ranked", "strength": 1, "criteria": {"helpful": [1]}},
     {"outcome": "ranked", "strength": 1, "correction": {"position": 2, "text": "x"}},
     {"outcome": "ranked", "strength": 1, "correction": {"position": 0, "text": "x" * 50_001}}],
)  # fmt: skip
def test_a_vote_that_does_not_fit_is_refused(api: Any, comparison: Make, voter: Voter, body: Any) -> None:
    _plain(api)
    queue_comparisons(api.store, [comparison("c")], votes_wanted=1)
    token = voter(api, "ada", guidelines_read=2)
    lease = _draw(api, token)["lease"]
    reply = api.post(f"/leases/{lease}/vote", token, body)
    assert reply.status_code == 422
    assert isinstance(reply.json()["detail"], str)
    assert _rows(api) == []
    assert _draw(api, token)["lease"] == lease


def test_a_lease_that_went_to_others_is_over(api: Any, comparison: Make, voter: Voter) -> None:
    _plain(api)
    queue_comparisons(api.store, [comparison("c")], votes_wanted=1)
    ada, eve = voter(api, "ada", guidelines_read=2), voter(api, "eve", guidelines_read=2)
    lease = _draw(api, ada)["lease"]
    with api.store.write() as connection:
        connection.execute(update(schema.leases).values(expires=now() - timedelta(minutes=1)))
    theirs = _draw(api, eve)["lease"]
    assert api.post(f"/leases/{theirs}/vote", eve, {"outcome": "both_bad"}).status_code == 200
    late = api.post(f"/leases/{lease}/vote", ada, {"outcome": "both_bad"})
    assert (late.status_code, late.json()["code"]) == (409, "expired")
    with api.store.read() as connection:
        assert connection.execute(select(func.count()).select_from(schema.votes)).scalar_one() == 1
