"""The review desk over HTTP as a browser calls it."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from alignment.records import Comparison
from preference_ui.accounts.auth import open_session
from preference_ui.app import create_app
from preference_ui.labelling.queue import queue_comparisons
from preference_ui.labelling.voting import cast_vote, next_lease
from preference_ui.store.settings import DeskSettings
from preference_ui.store.store import Store
from preference_ui.web.middleware import COOKIE


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

        act.client, act.cookies = client, cookies  # type: ignore[attr-defined]
        yield act
