"""Links by which many may join: up to a number, once for each id, and back to where they came from."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import func, select
from starlette.testclient import TestClient

from alignment.errors import InputError
from alignment.records import Comparison
from preference_ui.accounts.auth import Account, authenticate
from preference_ui.accounts.links import close_link, completion_of, external_ids, join, make_link, open_links
from preference_ui.app import create_app
from preference_ui.labelling.queue import queue_comparisons
from preference_ui.store import schema
from preference_ui.store.errors import Refusal
from preference_ui.store.settings import DeskSettings
from preference_ui.store.store import Store
from preference_ui.web.rater_page import RaterHandlers

BACK = "https://app.example.com/submissions/complete?cc=ABC"


def _who(store: Store, session: str) -> Account:
    account = authenticate(store, session)
    assert account is not None
    return account


def test_each_id_has_one_account_until_the_places_are_taken(store: Store) -> None:
    token = make_link(store, places=2, created_by="root", completion=BACK)
    first = _who(store, join(store, token, "5f3a"))
    assert (first.role, completion_of(store, first.id)) == ("rater", BACK)
    assert _who(store, join(store, token, "5f3a")).id == first.id
    second = _who(store, join(store, token, "6b2c"))
    with pytest.raises(Refusal, match="places are taken"):
        join(store, token, "7d1e")
    assert _who(store, join(store, token, "6b2c")).id == second.id  # who is in stays in
    assert external_ids(store) == {first.name: "5f3a", second.name: "6b2c"}
    [link] = open_links(store)
    assert (link["places"], link["taken"]) == (2, 2)
    close_link(store, link["id"], actor="root")
    assert open_links(store) == []
    for came in ("5f3a", "7d1e"):
        with pytest.raises(Refusal, match="does not work"):
            join(store, token, came)


def test_a_crowd_at_once_gets_no_more_places_than_there_are(store: Store) -> None:
    token = make_link(store, places=3, created_by="root")
    refused: list[str] = []

    def come(name: str) -> None:
        try:
            join(store, token, name)
        except Refusal as refusal:
            refused.append(refusal.code)

    threads = [threading.Thread(target=come, args=(f"id{at // 2}",)) for at in range(12)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    with store.read() as connection:
        assert connection.execute(select(func.count()).select_from(schema.joined)).scalar_one() == 3
    assert set(refused) == {"full"}


@pytest.mark.parametrize(
    ("asked", "said"),
    [({"places": 0}, "places"), ({"parameter": "a b"}, "no name in an address"), ({"days": 0}, "days"),
     ({"completion": "javascript:alert(1)"}, "address of the web")],
)  # fmt: skip
def test_a_link_that_cannot_be_is_refused(sqlite_store: Store, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        make_link(sqlite_store, **({"places": 1, "created_by": "root"} | asked))


def test_the_page_asks_first_and_lets_in_and_says_where_to_go_at_the_end(
    sqlite_store: Store, comparison: Callable[..., Comparison]
) -> None:
    settings = DeskSettings(gold_share=0, repeat_share=0, trial_required=False)
    sqlite_store.change_settings(settings, author="root")
    queue_comparisons(sqlite_store, [comparison("c0")], votes_wanted=1)
    token = make_link(sqlite_store, places=5, created_by="root", completion=BACK)
    with TestClient(create_app(sqlite_store), follow_redirects=False) as client:
        for address in (f"/join/{token}", f"/join/{token}?PROLIFIC_PID=", f"/join/{token}?PROLIFIC_PID=a%20b"):
            for reply in (client.get(address), client.post(address)):
                assert reply.status_code == 400
                assert "lacks the id" in reply.text
        address = f"/join/{token}?PROLIFIC_PID=5f3a"
        shown = client.get(address)
        assert "Start" in shown.text
        assert external_ids(sqlite_store) == {}  # a look makes no account
        other = client.post(address, headers={"origin": "https://evil.example"})
        assert other.status_code == 403
        came = client.post(address)
        assert (came.status_code, came.headers["location"]) == (303, "/rate")
        account = _who(sqlite_store, came.cookies["rlhf_session"])
        assert client.get("/join/invented?PROLIFIC_PID=x").status_code == 400
    desk = RaterHandlers(sqlite_store)
    screen = desk._read_guidelines(account, {"version": 1})["screen"]
    done = desk._vote(account, {"lease": screen["lease"], "verdict": {"outcome": "both_bad"}})["screen"]
    assert (done["lease"], done["completion"]) == (None, BACK)
