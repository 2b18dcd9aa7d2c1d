"""The import at the review desk over HTTP: uploaded, looked at whole, and queued only where nothing is wrong."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select

from alignment.records import Comparison
from preference_ui.labelling.queue import queue_comparisons
from preference_ui.store import schema
from preference_ui.store.queue_settings import QueueSettings, change_queue
from preference_ui.store.store import Store
from tests.hub_server import Hub

GOOD = "prompt,response_1,response_2\nWhy?,Because.,So.\nHow?,Thus.,Like this.\n"
BAD = "prompt,response_1,response_2\nWhy?,Because.,Because.\nHow?,Thus.\n"


@pytest.fixture
def upload(call: Callable[..., Any]) -> Callable[..., Any]:
    """Uploads a file as the browser does. Returns what the page's file field then holds."""

    def send(name: str, text: str, by: str = "root") -> Any:
        reply = call.client.post(  # type: ignore[attr-defined]
            "/review/gradio_api/upload?upload_id=x",
            headers=call.cookies[by],
            files={"files": (name, text.encode())},  # type: ignore[attr-defined]
        )
        if reply.status_code != 200:
            return reply.status_code
        return {"path": reply.json()[0], "orig_name": name, "meta": {"_type": "gradio.FileData"}}

    return send


def _until_done(call: Callable[..., Any]) -> list[Any]:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        shown: list[Any] = call("look")
        if not shown[4].get("active"):
            return shown
        time.sleep(0.05)
    raise AssertionError(shown)


def _count(store: Store, queue: str) -> int:
    query = select(func.count()).select_from(schema.comparisons).where(schema.comparisons.c.queue == queue)
    with store.read() as connection:
        return int(connection.execute(query).scalar_one())


def test_faults_are_shown_before_anything_is_stored_and_then_the_file_comes_in(
    call: Callable[..., Any], upload: Callable[..., Any], sqlite_store: Store
) -> None:
    change_queue(sqlite_store, "new", QueueSettings(votes_wanted=2), author="root")
    call("check", upload("rows.csv", BAD), "", "", "new", None, False)
    said, _preview, faults, button, _clock = _until_done(call)
    assert said.startswith("2 faults.")
    assert [row[:3] for row in faults["data"]] == [
        ["2", "responses", "two answers are the same"], ["3", "", "2 cells, and the first line names 3 columns"],
    ]  # fmt: skip
    assert button["interactive"] is False
    assert call("enqueue")[0] == "There is no checked file. Check one first."
    assert _count(sqlite_store, "new") == 0

    good = upload("rows.csv", GOOD)
    call("check", good, "", "", "new", None, False)
    said, preview, faults, button, _clock = _until_done(call)
    assert said == "2 rows: 2 new, 0 repeat an earlier row, 0 were queued before. Nothing is stored yet."
    assert (faults["data"], button["interactive"]) == ([], True)
    assert preview["data"][0] == ["2", "Why?", "A: Because.\n\nB: So."]
    assert _count(sqlite_store, "new") == 0
    call("enqueue")
    assert _until_done(call)[0] == "Imported: 2 new comparisons, 0 were queued before."
    with sqlite_store.read() as connection:
        query = select(schema.comparisons.c.votes_wanted).where(schema.comparisons.c.queue == "new")
        assert connection.execute(query).scalars().all() == [2, 2]
    assert not Path(good["path"]).exists()
    trail = [(line["actor"], line["action"]) for line in sqlite_store.audit_trail(limit=1)]
    assert trail == [("root", "comparisons.queue")]


def test_another_check_takes_the_place_of_one_that_nobody_imported(
    call: Callable[..., Any], upload: Callable[..., Any], sqlite_store: Store
) -> None:
    for text in (GOOD, GOOD.replace("Why", "Who")):
        call("check", upload("rows.csv", text), "", "", "new", None, False)
        assert "2 new" in _until_done(call)[0]
    call("enqueue")
    _until_done(call)
    with sqlite_store.read() as connection:
        prompts = connection.execute(select(schema.comparisons.c.prompt).where(schema.comparisons.c.queue == "new"))
        assert {one["messages"][0]["content"] for one in prompts.scalars()} == {"Who?", "How?"}


@pytest.mark.parametrize(
    ("artifact", "hub", "queue", "said"),
    [("", "", "q", "Choose one: a file"), ("x", "org/name", "q", "Choose one: a file"),
     ("../../etc", "", "q", "no such artifact"), ("x", "", "No Queue", "no name of a queue"),
     ("x", "", "q", "no such artifact"), ("", "alone", "q", "'alone' says not whose it is; write ORGANISATION/NAME"),
     ("", "hub:../x", "q", "write ORGANISATION/NAME")],
)  # fmt: skip
def test_what_cannot_be_imported_is_said(
    call: Callable[..., Any], artifact: str, hub: str, queue: str, said: str
) -> None:
    call("artifacts")
    assert said in str(call("check", None, artifact, hub, queue, None, False)[0])


def test_a_data_set_of_a_hub_comes_in(
    call: Callable[..., Any], sqlite_store: Store, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    hub.files = {"../rows.csv": GOOD.encode(), "data/rows.csv": GOOD.encode()}  # one leads out of the folder
    call("check", None, "", "org/name", "new", None, False)
    said, preview, *_ = _until_done(call)
    assert said == "2 rows: 2 new, 0 repeat an earlier row, 0 were queued before. Nothing is stored yet."
    assert preview["data"][0] == ["2", "Why?", "A: Because.\n\nB: So."]
    call("enqueue")
    assert _until_done(call)[0] == "Imported: 2 new comparisons, 0 were queued before."
    assert _count(sqlite_store, "new") == 2
    hub.refuses = True
    call("check", None, "", "org/name:data/rows.csv", "new", None, False)
    assert _until_done(call)[0].startswith(f"{hub.url} refused org/name (403, You may not read here)")


def test_uploads_are_for_administrators_and_for_this_page(
    call: Callable[..., Any], upload: Callable[..., Any], tmp_path: Path
) -> None:
    assert upload("rows.csv", GOOD, by="ada") == 403
    assert upload("rows.csv", GOOD, by="nobody") == 401
    client: httpx.Client = call.client  # type: ignore[attr-defined]
    for path in ("/rate", "/admin"):
        reply = client.post(f"{path}/gradio_api/upload", headers=call.cookies["root"], files={"files": b"x"})  # type: ignore[attr-defined]
        assert reply.status_code == 404
    secret = tmp_path / "secret.jsonl"
    secret.write_text(json.dumps({"prompt": "secret", "response": "text"}))
    good = upload("rows.csv", GOOD)
    for name in (str(secret), f"{Path(good['path']).parent}/../../secret.jsonl", "http://127.0.0.1:9/secret.jsonl",
                 f"{Path(good['path']).parents[1]}/x"):  # fmt: skip
        for more in ({}, {"is_stream": True}, {"url": name}):
            path = {"path": name, "orig_name": "secret.jsonl", "meta": {"_type": "gradio.FileData"}} | more
            refused = call(
                "check", path, "", "", "q", None, False
            )  # no other file of the machine, and no other machine
            assert refused == 500 or "not uploaded" in str(refused)
            assert call("look")[:1] == [""]
    for name in ("check", "enqueue", "look", "artifacts"):
        data = (None, "", "", "q", None, False) if name == "check" else ()
        assert call(name, *data, by="ada") == 403


def test_gold_acts_on_known_rows_or_says_why_not(
    sqlite_store: Store, comparison: Callable[..., Comparison], call: Callable[..., Any], upload: Callable[..., Any]
) -> None:
    assert queue_comparisons(sqlite_store, [comparison("x")], votes_wanted=1)
    rows = "prompt,chosen,rejected\nWhy?,Because.,So.\n"
    for gold, said in ((False, "Imported: 1 new"), (True, "1 of those are gold now")):
        call("check", upload("rows.csv", rows), "", "", "new", None, gold)
        _until_done(call)
        call("enqueue")
        assert said in _until_done(call)[0]
    call("check", upload("rows.csv", rows.replace("Because.,So.", "So.,Because.")), "", "", "new", None, True)
    assert "1 new" in _until_done(call)[0]  # the answers the other way round are another comparison
