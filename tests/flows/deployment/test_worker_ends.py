"""How a worker (`rlhf deploy`) ends, and what it leaves: real processes on a real Prefect server, ended in each way."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
LONG = {
    "stages.sft.epochs": 4000, "stages.sft.checkpoint_every": 100000, "stages.sft.schedule": "constant",
    "deployment.every": 86400,
}  # fmt: skip


@pytest.fixture
def room(make_recipe: Callable[..., Path], make_room: Callable[..., Any], tmp_path: Path) -> Any:
    return make_room(make_recipe(tmp_path / "recipe", stages=("sft",), changes=LONG), tmp_path / "workspace")


def serve(room: Any) -> tuple[Any, dict[str, Any]]:
    worker = room.start("deploy", room.recipe)
    [deployment] = room.until(lambda: room.post("/deployments/filter", {}) or None, 200)
    return worker, deployment


def training(room: Any, worker: Any, deployment: dict[str, Any]) -> psutil.Process:
    """Starts a run, waits until it trains, and returns its process."""
    place = f"/deployments/{deployment['id']}/create_flow_run"
    room.until(lambda: room.post(place, {"state": {"type": "SCHEDULED"}}), 60)  # a busy server answers 503
    room.until(lambda: True if (room.root / "metrics" / "sft.prom").exists() else None, 300)
    [run] = [
        one for one in psutil.Process(worker.pid).children(recursive=True) if "spawn_main" in " ".join(one.cmdline())
    ]
    return run


def checkpoints(room: Any) -> list[int]:
    found = room.root.glob("partial/*/checkpoints/checkpoint-*/complete")
    return sorted(int(path.parent.name.split("-")[1]) for path in found)


def deployment_now(room: Any) -> dict[str, Any]:
    [found] = room.post("/deployments/filter", {})
    return dict(found)


def states(room: Any) -> dict[str, str]:
    return {run["name"]: run["state_type"] for run in room.post("/flow_runs/filter", {}) if not run["auto_scheduled"]}


def test_sigterm_is_passed_on_with_time_for_a_checkpoint(room: Any) -> None:
    worker, deployment = serve(room)
    run = training(room, worker, deployment)
    assert checkpoints(room) == []
    began = time.monotonic()
    worker.terminate()
    code = worker.wait(60)
    took = time.monotonic() - began
    assert not run.is_running() or run.status() == psutil.STATUS_ZOMBIE
    assert took < 30, f"{took:.1f} s"  # Kubernetes kills after thirty
    assert code == 143
    assert checkpoints(room), "the step under way was to end with a checkpoint"
    assert deployment_now(room)["paused"]
    assert not list(room.root.glob("metrics/*.prom"))
    assert "RUNNING" not in states(room).values()
    # Served again, it is active again, and goes on from the checkpoint.
    kept = max(checkpoints(room))
    again = room.start("deploy", room.recipe)
    room.until(lambda: True if not deployment_now(room)["paused"] else None, 200)
    training(room, again, deployment)
    again.terminate()
    assert again.wait(60) == 143
    assert max(checkpoints(room)) > kept


def test_a_killed_worker_leaves_no_orphan_and_no_active_schedule(room: Any) -> None:
    worker, deployment = serve(room)
    run = training(room, worker, deployment)
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait(10)
    _gone, alive = psutil.wait_procs([run], timeout=40)
    assert alive == []
    assert checkpoints(room), "the orphan was to end with a checkpoint"
    room.until(lambda: True if deployment_now(room)["paused"] else None, 30)
    room.until(lambda: True if "RUNNING" not in states(room).values() else None, 30)
    assert not list(room.root.glob("metrics/*.prom"))


def test_a_killed_run_is_told_as_crashed_all_of_it(room: Any) -> None:
    """SIGKILL of the run alone, as the kernel does when memory is short: nothing of it stays RUNNING or "at work"."""
    worker, deployment = serve(room)
    run = training(room, worker, deployment)
    run.kill()
    room.until(lambda: True if set(states(room).values()) == {"CRASHED"} else None, 60)
    assert len(states(room)) == 2  # the deployment's run and the recipe's in it
    assert not list(room.root.glob("metrics/*.prom"))
    assert worker.poll() is None


def test_a_server_that_restarts_ends_neither_worker_nor_run(room: Any) -> None:
    worker, deployment = serve(room)
    run = training(room, worker, deployment)
    server = json.loads((room.root / "services" / "prefect.json").read_text())
    os.killpg(server["pid"], signal.SIGKILL)
    step = (room.root / "metrics" / "sft.prom").read_text()
    time.sleep(40)
    assert run.is_running()
    assert worker.poll() is None
    assert (room.root / "metrics" / "sft.prom").read_text() != step
    assert room.run("dashboard").returncode == 0  # starts it again, on the port that is free
    again = room.until(lambda: deployment_now(room), 60)
    assert not again["paused"]
    worker.terminate()
    assert worker.wait(60) == 143
    assert checkpoints(room)
