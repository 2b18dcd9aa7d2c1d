"""Comparisons through the API: checked as a file's, all faults at once, and the same sent twice."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from alignment.records import Comparison
from preference_ui.importing import import_comparisons
from preference_ui.labelling.queue import queue_comparisons
from preference_ui.store import schema
from preference_ui.store.store import Store

PAIR = {"prompt": "Name a colour.", "chosen": "Red.", "rejected": "Seven."}
MANY = {"prompt": "What is two and two?", "responses": ["Four.", "Five.", {"text": "Six.", "model": "m@1"}]}
THUMB = {"prompt": "Say hello.", "response": "Hello!"}


def _rows(store: Store) -> list[Any]:
    with store.read() as connection:
        return list(connection.execute(select(schema.comparisons).order_by(schema.comparisons.c.id)))


def test_rows_of_every_kind_are_queued_once_however_often_they_are_sent(api: Any) -> None:
    token, body = api.token("queue"), {"rows": [PAIR, MANY, THUMB, PAIR], "queue": "colours", "votes_wanted": 2}
    assert api.post("/comparisons", token, body).json() == {
        "rows": 4,
        "new": 3,
        "repeated": 1,
        "known": 0,
        "turned": 0,
        "kept": 0,
    }
    assert api.post("/comparisons", token, body).json() == {
        "rows": 4,
        "new": 0,
        "repeated": 1,
        "known": 3,
        "turned": 0,
        "kept": 0,
    }
    rows = _rows(api.store)
    assert sorted(len(row.responses) for row in rows) == [1, 2, 3]
    assert {(row.queue, row.votes_wanted, row.purpose) for row in rows} == {("colours", 2, "work")}
    [line] = [line for line in api.store.audit_trail() if line["action"] == "comparisons.queue"]
    assert (line["actor"], line["subject"]) == ("token:t", "3 comparisons")


def test_what_comes_by_http_is_what_comes_by_file(api: Any, tmp_path: Path, up_to_date: Path) -> None:
    other = Store.open(str(tmp_path / "other.db"))
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in (PAIR, MANY, THUMB)))
    import_comparisons(other, file)
    api.post("/comparisons", api.token("queue"), {"rows": [PAIR, MANY, THUMB]})
    one, two = ([(row.id, row.prompt, row.responses) for row in _rows(store)] for store in (other, api.store))
    assert one == two
    other.close()


def test_gold_needs_a_known_answer_and_every_fault_is_told_with_row_and_field(api: Any) -> None:
    token = api.token("queue")
    assert api.post("/comparisons", token, {"rows": [PAIR], "gold": True}).json()["new"] == 1
    wrong = {"rows": [MANY, {"prompt": "?", "responses": ["same", "same"]}, 7, {"prompt": "x", "responses": ["a", ""]},
                      {"responses": ["a", "b"]}, {"prompt": "a\ud800", "responses": ["a", "b"]},
                      {"prompt": "nul\0", "responses": ["a", "b"]}, {"prompt": "x", "responses": [1, 2]}]}  # fmt: skip
    head = {"content-type": "application/json"}
    reply = api.call("POST", "/comparisons", token, content=json.dumps(wrong), headers=head)
    assert reply.status_code == 422
    faults = reply.json()["faults"]
    assert [fault["row"] for fault in faults] == [2, 3, 4, 5, 6, 7, 8]
    assert faults[0]["field"] == "responses"
    assert faults[2]["field"] == "responses.1"
    assert faults[1]["problem"] == "the row is a number, not an object"
    assert all(fault["problem"] and fault["remedy"] for fault in faults)
    assert reply.json()["detail"].splitlines()[0] == "row 2, responses: two answers are the same; leave one of them out"
    assert "rows.jsonl" not in reply.text
    assert len(_rows(api.store)) == 1


def test_more_than_twenty_faults_are_all_told(sqlite_api: Any) -> None:
    reply = sqlite_api.post("/comparisons", sqlite_api.token("queue"), {"rows": [{"prompt": "?"}] * 31})
    assert [fault["row"] for fault in reply.json()["faults"]] == list(range(1, 32))


def test_an_id_that_another_question_has_is_a_fault_of_its_row(api: Any, comparison: Callable[..., Comparison]) -> None:
    queue_comparisons(api.store, [comparison("taken")], votes_wanted=1)
    other = comparison("taken", question="Another question?").model_dump(mode="json")
    reply = api.post("/comparisons", api.token("queue"), {"rows": [MANY, other]})
    [fault] = reply.json()["faults"]
    assert (fault["row"], fault["field"]) == (2, "taken")
    assert "already taken" in fault["problem"]
    long = comparison("x" * 129).model_dump(mode="json")
    [fault] = api.post("/comparisons", api.token("queue"), {"rows": [long]}).json()["faults"]
    assert "128" in fault["problem"]
    assert [row.id for row in _rows(api.store)] == ["taken"]


@pytest.mark.parametrize(
    ("body", "field"),
    [({"rows": []}, "rows"), ({"rows": "x"}, "rows"), ({}, "rows"), ({"rows": [PAIR] * 1_001}, "rows"),
     ({"rows": [PAIR], "votes_wanted": 0}, "votes_wanted"), ({"rows": [PAIR], "votes_wanted": "3"}, "votes_wanted"),
     ({"rows": [PAIR], "votes_wanted": True}, "votes_wanted"), ({"rows": [PAIR], "queue": "Two words"}, "queue"),
     ({"rows": [PAIR], "queue": "a\n"}, "queue"), ({"rows": [PAIR], "queue": "../x"}, "queue"),
     ({"rows": [PAIR], "queue": "x" * 65}, "queue"), ({"rows": [PAIR], "gold": "yes"}, "gold"),
     ({"rows": [PAIR], "more": 1}, "more"), ([], "")],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_field(sqlite_api: Any, body: Any, field: str) -> None:
    reply = sqlite_api.post("/comparisons", sqlite_api.token("queue"), body)
    assert reply.status_code == 422
    assert field in [fault["field"] for fault in reply.json()["faults"]] or not field
    assert _rows(sqlite_api.store) == []


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"rows": NaN}', b"null"])
def test_nonsense_is_refused_in_json(sqlite_api: Any, body: bytes) -> None:
    head = {"content-type": "application/json"}
    reply = sqlite_api.call("POST", "/comparisons", sqlite_api.token("queue"), content=body, headers=head)
    assert 400 <= reply.status_code < 500
    assert isinstance(reply.json()["detail"], str)


def test_a_body_over_the_bound_is_refused_whether_it_says_its_length_or_not(sqlite_api: Any) -> None:
    token = sqlite_api.token("queue")
    fits = {"prompt": "x", "responses": ["a" * 90_000, "b" * 90_000, "c" * 90_000, "d" * 90_000]}
    assert sqlite_api.post("/comparisons", token, {"rows": [fits]}).json()["new"] == 1  # more than a page may send
    large = b'{"rows": [' + b" " * (4 * 1024 * 1024) + b"]}"
    said = sqlite_api.call("POST", "/comparisons", token, content=large)
    assert (said.status_code, set(said.json())) == (413, {"detail", "code"})
    streamed = sqlite_api.call("POST", "/comparisons", token, content=iter([large[:3_000_000], large[3_000_000:]]))
    assert streamed.status_code == 413
    assert sqlite_api.call("POST", "/comparisons", None, content=large).status_code in (401, 413)


def test_records_are_withdrawn_and_put_back(api: Any, comparison: Callable[..., Comparison]) -> None:
    token = api.token("queue")
    queue_comparisons(api.store, [comparison("one"), comparison("two")], votes_wanted=1)
    away = api.post("/comparisons/withdraw", token, {"ids": ["one", "none", "' OR 1=1"]})
    assert away.json() == {"changed": 1, "unknown": ["none", "' OR 1=1"]}
    assert api.post("/comparisons/withdraw", token, {"ids": ["one"]}).json() == {"changed": 0, "unknown": []}
    assert [row.withdrawn for row in _rows(api.store)] == [True, False]
    assert api.post("/comparisons/put_back", token, {"ids": ["one", "two"]}).json() == {"changed": 1, "unknown": []}
    assert [row.withdrawn for row in _rows(api.store)] == [False, False]
    for ids in ([], ["a\0"], [7], ["x" * 129], ["one"] * 1_001):
        assert api.post("/comparisons/withdraw", token, {"ids": ids}).status_code == 422
    assert [line["actor"] for line in api.store.audit_trail(subject="one")] == ["token:t"]


def test_the_same_rows_sent_twice_at_once_are_queued_once(api: Any) -> None:
    token = api.token("queue")
    body = {"rows": [{"prompt": f"Question {at}", "responses": ["yes", "no"]} for at in range(300)]}
    replies: list[Any] = []
    threads = [threading.Thread(target=lambda: replies.append(api.post("/comparisons", token, body))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [reply.status_code for reply in replies] == [200] * 4
    assert sum(reply.json()["new"] for reply in replies) == 300
    with api.store.read() as connection:
        assert connection.execute(select(func.count()).select_from(schema.comparisons)).scalar_one() == 300
