"""`rlhf deploy` on a real Prefect server: what starts a run, what stops one, and what is left of it then."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
LONG = {"stages.sft.epochs": 4000, "stages.sft.checkpoint_every": 5, "stages.sft.schedule": "constant"}


@pytest.fixture
def make(make_recipe: Callable[..., Path], make_room: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """A room around a recipe of one training stage, with changes."""

    def room(*stages: str, name: str = "workspace", **changes: Any) -> Any:
        dotted = {key.replace("__", "."): value for key, value in changes.items()}
        recipe = make_recipe(tmp_path / name / "recipe", stages=stages or ("sft",), changes=dotted)
        return make_room(recipe, tmp_path / name / "workspace")

    return room


def flow_runs(room: Any, name: str = "recipe") -> list[dict[str, Any]]:
    """The runs of a flow, oldest first."""
    body = {"flows": {"name": {"any_": [name]}}, "sort": "EXPECTED_START_TIME_ASC"}
    found: list[dict[str, Any]] = room.post("/flow_runs/filter", body)
    return found


def ended(room: Any, count: int, seconds: float, kind: str = "COMPLETED") -> list[dict[str, Any]]:
    def look() -> list[dict[str, Any]] | None:
        done = [run for run in flow_runs(room) if run["state_type"] == kind]
        return done if len(done) >= count else None

    found: list[dict[str, Any]] = room.until(look, seconds)
    return found


def test_a_schedule_of_seconds_fires(make: Callable[..., Any]) -> None:
    """Nobody starts anything: two runs come by themselves, the second answered from the cache."""
    room = make(deployment__every=8)
    room.start("deploy", room.recipe)
    room.report(1, 300)
    second = room.report(2, 120)
    assert [stage["cached"] for stage in second["stages"]] == [True, True]
    runs = ended(room, 2, 60)
    assert all(run["auto_scheduled"] for run in runs)
    # At least the interval lies between what was planned, however busy the machine is.
    times = [time.mktime(time.strptime(run["expected_start_time"][:19], "%Y-%m-%dT%H:%M:%S")) for run in runs[:2]]
    assert times[1] - times[0] >= 8


def test_another_recipes_champion_starts_a_run_and_its_own_does_not(make: Callable[..., Any]) -> None:
    stages = ("sft", "responses", "preferences", "reward", "dpo", "evaluation")
    room = make(*stages, deployment__after_champion=["policy"], deployment__after_refusal=["other"])
    room.start("deploy", room.recipe)
    room.until(lambda: room.post("/automations/filter", {})[2:3] or None, 200)

    def event(name: str, resource: str, recipe: str) -> None:
        from uuid import uuid4

        row = {
            "id": str(uuid4()), "event": name, "occurred": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "resource": {"prefect.resource.id": resource, "rlhf.recipe": recipe}, "payload": {},
        }  # fmt: skip
        import httpx

        httpx.post(f"{room.api}/events", json=[row], timeout=20).raise_for_status()

    event("champion.promoted", "rlhf.models.policy", "tiny")  # this recipe's own: not heard
    event("champion.promoted", "rlhf.models.another", "elsewhere")
    event("champion.promoted", "rlhf.models.policy", "elsewhere")
    report = room.report(1, 300)
    assert report["gate"]["passed"]
    ended(room, 1, 60)
    # The run itself promoted a version and said so: to others. The mark says that the server took it.
    assert (room.root / "services/announced/policy-v1").read_text().strip() == "tiny-1"
    sent = room.post("/events/filter", {"filter": {"event": {"name": ["champion.promoted"]}}})
    assert [one["resource"]["rlhf.recipe"] for one in sent["events"]].count("tiny") == 2
    event("gate.refused", "rlhf.recipes.other", "other")
    room.report(2, 200)
    time.sleep(10)
    assert len(flow_runs(room)) == 2
    names = {run["name"] for run in flow_runs(room, "alignment")}
    assert names == {"tiny-1: policy v1 promoted", "tiny-2: policy v1 promoted"}


def test_a_cancel_stops_training_within_ten_seconds_and_the_next_run_goes_on(make: Callable[..., Any]) -> None:
    changes = {key.replace(".", "__"): value for key, value in LONG.items()}
    room = make(**changes, resources__limit="gpus", resources__slots=2)
    refused = room.run("deploy", room.recipe)
    assert refused.returncode == 2
    assert "the server has no limit gpus" in refused.stderr
    server = room.start("deploy", room.recipe, "--limit", "gpus=2")
    [deployment] = room.until(lambda: room.post("/deployments/filter", {}) or None, 200)
    run = room.post(f"/deployments/{deployment['id']}/create_flow_run", {"state": {"type": "SCHEDULED"}})

    def checkpoints() -> list[int]:
        found = room.root.glob("partial/*/checkpoints/checkpoint-*/complete")
        return sorted(int(path.parent.name.split("-")[1]) for path in found)

    room.until(lambda: checkpoints()[1:] or None, 300)
    training = [
        one
        for one in psutil.Process(server.pid).children(recursive=True)
        if "multiprocessing.spawn" in " ".join(one.cmdline())
    ]
    assert len(training) == 1
    assert limit(room)["active_slots"] == 2

    began = time.monotonic()
    room.post(f"/flow_runs/{run['id']}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    _gone, alive = psutil.wait_procs(training, timeout=30)
    took = time.monotonic() - began
    assert alive == []
    assert took < 10, f"{took:.1f} s"
    [state] = [one for one in ended(room, 1, 30, "CANCELLED") if one["id"] == run["id"]]
    assert state["state_type"] == "CANCELLED"
    room.until(lambda: True if limit(room)["active_slots"] == 0 else None, 20)  # what it held is free
    assert not list(room.root.glob("metrics/*.prom"))
    assert not list(room.root.glob("artifacts/*/v*"))  # nothing half-written
    assert json.loads((room.root / "runs/tiny-1/report.json").read_text())["stages"][-1]["status"] == "failed"

    kept = max(checkpoints())
    again = room.post(f"/deployments/{deployment['id']}/create_flow_run", {"state": {"type": "SCHEDULED"}})
    room.until(lambda: [step for step in checkpoints() if step > kept] or None, 200)
    steps = sorted(int(path.name.split("-")[1]) for path in room.root.glob("partial/*/checkpoints/checkpoint-*"))
    assert min(steps) >= kept  # the two newest are kept: it did not begin anew
    room.post(f"/flow_runs/{again['id']}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    ended(room, 2, 60, "CANCELLED")


def limit(room: Any) -> dict[str, Any]:
    [found] = [one for one in room.post("/v2/concurrency_limits/filter", {}) if one["name"] == "gpus"]
    return dict(found)


def test_a_failed_run_is_tried_again_and_told_of(make: Callable[..., Any], tmp_path: Path) -> None:
    """The limit of two seconds ends each try of a run that takes longer; a receiver hears of both."""
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    heard: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    receiver = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    changes = {key.replace(".", "__"): value for key, value in LONG.items()}
    room = make(**changes, deployment__retries=1, deployment__retry_seconds=0, deployment__timeout_seconds=12,
                notify={"webhook": {"url_env": "HOOK_URL"}, "on": ["failed"]})  # fmt: skip
    room.environment["HOOK_URL"] = f"http://127.0.0.1:{receiver.server_address[1]}/t0ken"
    room.start("deploy", room.recipe)
    [deployment] = room.until(lambda: room.post("/deployments/filter", {}) or None, 200)
    room.post(f"/deployments/{deployment['id']}/create_flow_run", {"state": {"type": "SCHEDULED"}})
    ended(room, 1, 300, "FAILED")
    receiver.shutdown()
    assert [(one["run"], one["ending"]) for one in heard] == [("tiny-1", "failed"), ("tiny-2", "failed")]
    kept = [path for path in room.root.rglob("*") if path.is_file() and path.suffix not in (".safetensors", ".pt")]
    assert not [path for path in kept if b"t0ken" in path.read_bytes()]
    assert os.environ.get("HOOK_URL") is None
