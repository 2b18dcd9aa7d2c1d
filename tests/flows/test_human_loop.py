"""The loop with nobody at the wheel: run, app and deployment are processes of their own, on a real Prefect server."""

import contextlib
import json
import socket
import time
import uuid
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import insert

from preference_ui.accounts.auth import open_session
from preference_ui.labelling.assignment import next_lease
from preference_ui.labelling.voting import cast_vote
from preference_ui.store import schema
from preference_ui.store.store import Store, now
from preference_ui.web.middleware import COOKIE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
PEOPLE = {"kind": "human_preferences", "responses": "responses", "votes_per_comparison": 2, "pairs": 6,
          "min_agreement": 0.9}  # fmt: skip


@pytest.fixture
def room(make_recipe: Callable[..., Path], make_room: Callable[..., Any], tmp_path: Path) -> Any:
    changes = {"stages.preferences": PEOPLE, "gate.merge": True, "stages.evaluation.against": ["base"]}
    changes |= {f"stages.{name}.model": "base" for name in ("responses", "reward", "dpo")}
    stages = ("responses", "preferences", "reward", "dpo", "evaluation")
    return make_room(make_recipe(tmp_path / "recipe", stages=stages, changes=changes), tmp_path / "workspace")


def test_the_last_vote_starts_the_run_that_promotes_and_asks_again(room: Any) -> None:
    first = room.run("run", room.recipe)
    assert first.returncode == 0, first.stderr
    assert "waiting" in first.stdout
    assert "waits for raters" in " ".join(first.stdout.split())
    report = room.report(1, 1)
    assert [stage["status"] for stage in report["stages"] if stage["name"] == "preferences"] == ["waiting"]
    assert "reward" not in [stage["name"] for stage in report["stages"]]

    room.start("deploy", room.recipe)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    room.start("rate", "--port", port)
    _until_served(room, port)
    for name in ("ada", "bob"):
        assert _vote_on_all(room, port, name) >= 6

    second = room.report(2, 600)  # nobody started it
    assert second["gate"]["passed"]
    stages = {stage["name"]: stage for stage in second["stages"]}
    assert [name for name, stage in stages.items() if stage["cached"]] == ["base", "responses"]
    figures = stages["preferences"]["metrics"]
    assert (figures["raters"], figures["agreement"]) == (2, 1)
    agreement = next((room.root / "artifacts/preferences/v1").rglob("agreement.json"))
    digest = json.loads(agreement.read_text())["digest"]
    sentence = second["preferences"][0]["raters"]
    assert sentence.startswith("2 people in the app")
    assert digest[:12] in sentence

    third = room.report(3, 400)  # the new champion answers, and its answers wait for the raters
    stages = {stage["name"]: stage for stage in third["stages"]}
    assert stages["preferences"]["status"] == "waiting"
    assert not stages["responses"]["cached"]
    base = (room.root / "runs" / "tiny-3" / "recipe.yaml").read_text()
    assert "merged" in base


def test_votes_that_were_ready_before_anybody_listened_start_a_run_too(room: Any) -> None:
    first = room.run("run", room.recipe)
    assert first.returncode == 0, first.stderr
    store = Store.open(f"sqlite:///{room.root}/raters/votes.db")
    for name in ("ada", "bob"):
        account, _ = _account(store, name)
        while (lease := next_lease(store, account)) is not None:
            texts = {one.id: one.text for one in lease.comparison.responses}
            better = min(lease.order, key=lambda one: texts[one])
            verdict = {"outcome": "ranked", "strength": -2 if better == lease.order[0] else 2}
            cast_vote(store, account, lease.id, verdict)
    store.close()
    room.start("deploy", room.recipe)
    second = room.report(2, 400)
    assert second["gate"]["passed"]
    assert second["preferences"][0]["raters"].startswith("2 people in the app")
    third = room.report(3, 200)
    assert {stage["name"]: stage["status"] for stage in third["stages"]}["preferences"] == "waiting"
    (mark,) = (room.root / "raters" / "waiting").glob("*.heard")
    assert mark.read_text().strip()[:12] in second["preferences"][0]["raters"]


def test_two_kinds_of_feedback_train_two_stages_in_one_run(
    make_recipe: Callable[..., Path], make_room: Callable[..., Any], tmp_path: Path
) -> None:
    """Two queues are open at once; DPO learns from the pairs of one, KTO from the thumbs of the other."""
    kto = {"kind": "kto", "model": "dpo", "feedback": "thumbs", "batch_size": 4, "epochs": 1, "max_length": 64,
           "learning_rate": 1e-3, "cut_chosen": "keep"}  # fmt: skip
    thumbs = PEOPLE | {"feedback": "thumbs", "answers": 8}
    del thumbs["pairs"]
    changes = {"stages.preferences": PEOPLE, "stages.thumbs": thumbs, "stages.kto": kto, "gate.merge": True,
               "stages.evaluation.against": ["base", "dpo"], "stages.evaluation.model": "kto"}  # fmt: skip
    changes |= {f"stages.{name}.model": "base" for name in ("responses", "reward", "dpo")}
    path = make_recipe(tmp_path / "recipe", stages=("responses", "preferences", "reward", "dpo", "evaluation"),
                       changes=changes)  # fmt: skip
    recipe = json.loads(path.read_text())
    order = ("responses", "preferences", "thumbs", "reward", "dpo", "kto", "evaluation")
    recipe["stages"] = {name: recipe["stages"][name] for name in order}
    path.write_text(json.dumps(recipe))
    room = make_room(path, tmp_path / "workspace")

    first = room.run("run", room.recipe)
    assert first.returncode == 0, first.stderr
    ended = {stage["name"]: stage["status"] for stage in room.report(1, 1)["stages"]}
    assert ended == {"base": "completed", "responses": "completed", "preferences": "waiting", "thumbs": "waiting"}
    room.start("deploy", room.recipe)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    room.start("rate", "--port", port)
    _until_served(room, port)
    for name in ("ada", "bob"):
        assert _vote_on_all(room, port, name) >= 14

    def promoted() -> dict[str, Any] | None:
        reports = [json.loads(one.read_text()) for one in sorted(room.root.glob("runs/*/report.json"))]
        return next((one for one in reports if one["gate"] and one["gate"]["passed"]), None)

    report = room.until(promoted, 600)  # nobody started it
    stages = {stage["name"]: stage for stage in report["stages"]}
    assert stages["kto"]["metrics"]["answers"] == stages["thumbs"]["metrics"]["answers"] >= 8
    digests = {}
    for name in ("preferences", "thumbs"):
        agreement = next((room.root / "artifacts" / name / "v1").rglob("agreement.json"))
        digests[name] = json.loads(agreement.read_text())["digest"]
    said = {one["stage"]: one["raters"] for one in report["preferences"]}
    assert said["preferences"].startswith("2 people in the app (")
    assert said["thumbs"].startswith("2 people in the app, thumbs up or down on single answers (")
    for name, sentence in said.items():
        assert "α = 1.00" in sentence  # the two vote by the same rule
        assert digests[name][:12] in sentence
    used = {(one["source"], one["target"], one["role"]) for one in report["lineage"]["edges"]}
    made_of = {("preferences@1", "dpo@1", "preferences"), ("thumbs@1", "kto@1", "feedback"),
               ("dpo@1", "kto@1", "model"), ("responses@1", "thumbs@1", "responses"),
               ("responses@1", "preferences@1", "responses")}  # fmt: skip
    assert made_of <= used

    def heard() -> set[str] | None:
        marks = {one.read_text().strip() for one in (room.root / "raters" / "waiting").glob("*.heard")}
        return marks if len(marks) == 2 else None

    assert room.until(heard, 60) == set(digests.values())  # neither starts that round again


def _until_served(room: Any, port: int) -> None:
    """Waits for the app, and for the deployment with its trigger."""
    api = json.loads((room.root / "services" / "prefect.json").read_text())["url"] + "/api"
    end = time.monotonic() + 200
    while time.monotonic() < end:
        with contextlib.suppress(httpx.HTTPError):
            alive = httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200
            if alive and httpx.post(f"{api}/automations/filter", json={}, timeout=5).json():
                return
        time.sleep(0.5)
    raise AssertionError({log.name: log.read_text("utf-8", "replace")[-3000:] for log in room.root.glob("*.log")})


def _vote_on_all(room: Any, port: int, name: str) -> int:
    """A person who prefers the answer that comes first in the alphabet, and finds half of the single ones good."""
    store = Store.open(f"sqlite:///{room.root}/raters/votes.db")
    _, token = _account(store, name)
    store.close()
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", cookies={COOKIE: token}, timeout=60)
    parts = client.get("/rate/config").json()["components"]
    component = next(part["id"] for part in parts if part["type"] == "html")

    def call(function: str, data: Any = None) -> Any:
        body = {"data": data, "component_id": component, "fn_name": function, "session_hash": name}
        return client.post("/rate/gradio_api/component_server/", json=body).raise_for_status().json()

    screen, cast = call("begin")["screen"], 0
    while screen["lease"] is not None:
        first, *others = (answer["text"] for answer in screen["answers"])
        if others:
            verdict: dict[str, Any] = {"outcome": "ranked", "strength": -2 if first < others[0] else 2}
        else:
            verdict = {"outcome": "up" if zlib.crc32(first.encode()) % 2 else "down"}
        screen = call("vote", {"lease": screen["lease"], "verdict": verdict})["screen"]
        cast += 1
    return cast


def _account(store: Store, name: str) -> tuple[str, str]:
    """A rater past guidelines and trial: the account's id, and a session's token."""
    row = {"id": uuid.uuid4().hex, "name": name, "role": "rater", "state": "active", "created": now(),
           "guidelines_read": 99, "trial_passed": True}  # fmt: skip
    with store.write() as connection:
        connection.execute(insert(schema.accounts).values(row))
        return str(row["id"]), open_session(connection, str(row["id"]), name)
