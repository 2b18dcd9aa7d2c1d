"""The review desk over HTTP as a browser calls it: only administrators, only these events, and texts as they are."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from alignment.records import Comparison
from preference_ui.accounts.auth import open_session
from preference_ui.app import create_app
from preference_ui.labelling.queue import queue_comparisons
from preference_ui.labelling.ruling import read_ruling
from preference_ui.labelling.voting import cast_vote, next_lease
from preference_ui.store.errors import Refusal
from preference_ui.store.settings import DeskSettings
from preference_ui.store.store import Store
from preference_ui.web.middleware import COOKIE

FIND = ["any", "any", "any", "", "", None, None, 1]


@pytest.fixture
def call(
    sqlite_store: Store, comparison: Callable[..., Comparison], add_rater: Callable[..., str]
) -> Iterator[Callable[..., Any]]:
    """Calls an event of the page by its name, as ada (a rater), root (an administrator) or nobody."""
    sqlite_store.change_settings(DeskSettings(gold_share=0, repeat_share=0), author="root")
    queue_comparisons(sqlite_store, [comparison("c0", question="<b>Which?</b>")], votes_wanted=2, queue="q")
    ada, root = add_rater(sqlite_store, "ada"), add_rater(sqlite_store, "root", role="administrator")
    lease = next_lease(sqlite_store, ada)
    assert lease is not None
    cast_vote(sqlite_store, ada, lease.id, {"outcome": "both_bad", "comment": "*no*"})
    with sqlite_store.write() as connection:
        tokens = {name: open_session(connection, one, name) for name, one in (("ada", ada), ("root", root))}
    with TestClient(create_app(sqlite_store), follow_redirects=False) as client:
        cookies = {name: {"cookie": f"{COOKIE}={token}"} for name, token in tokens.items()} | {"nobody": {}}
        config = client.get("/review/config", headers=cookies["root"]).json()
        events = {one["api_name"]: one["id"] for one in config["dependencies"]}

        def act(name: str, *data: Any, by: str = "root", path: str = "run/predict", **more: Any) -> Any:
            body = {"fn_index": events[name], "data": list(data), "session_hash": "abc"} | more
            reply = client.post(f"/review/gradio_api/{path}", json=body, headers=cookies[by])
            return reply.json()["data"] if reply.status_code == 200 else reply.status_code

        yield act


def test_the_list_opens_records_and_decides_them(call: Callable[..., Any]) -> None:
    rows, said = call("find", *FIND)
    assert said == "1 records; page 1 of 1"
    [row] = rows["data"]
    assert row[:5] == ["c0", "q", "<b>Which?</b>", 1, "0%"]
    opened = call("open", "c0")
    assert opened[1] == "user: <b>Which?</b>"
    assert [vote[:4] for vote in opened[3]["data"]] == [["ada", "both bad", "", "*no*"]]
    clicked = call("select", event_data={"index": [0, 0], "value": "c0", "row_value": row, "selected": True})
    assert clicked[0] == "c0"
    decided = call("decide", "c0", "a > b", "why not")
    assert decided[-1] == "Decided."
    assert [vote[1] for vote in decided[3]["data"]] == ["both bad", "A > B (2)"]
    assert call("withdraw", "c0")[-1] == "Withdrawn."
    assert call("put_back", "c0")[-1] == "Put back."
    assert call("open", "c9")[-1] == "There is no such record."
    assert "every answer once" in call("decide", "c0", "a > a", "")[-1]


def test_nobody_else_and_nothing_else(call: Callable[..., Any]) -> None:
    assert call("find", *FIND, by="ada") == 403
    assert call("find", *FIND, by="nobody") == 401
    for path in ("queue/join", "call/find", "run/find", "component_server/", "upload", "reset", "cancel"):
        assert call("find", *FIND, path=path) == 404


@pytest.mark.parametrize(
    ("text", "answers", "strength"), [("a > b", 2, -2), ("B>>A", 2, 3), (" a = b ", 2, 0), ("b > a", 2, 2)]
)
def test_a_ruling_is_read_from_letters(text: str, answers: int, strength: int) -> None:
    assert read_ruling(text, answers) == {"outcome": "ranked", "strength": strength}


def test_a_ruling_of_three_and_what_is_none() -> None:
    assert read_ruling("c > a = b", 3)["ranking"] == [[2], [0, 1]]
    assert read_ruling("both bad", 3) == {"outcome": "both_bad"}
    for nonsense in ("", "a", "a > b > a", "a > d", "d", "ab", None, "a > b"):
        with pytest.raises(Refusal, match="every answer once"):
            read_ruling(nonsense, 3)
