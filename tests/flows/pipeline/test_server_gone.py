"""A Prefect server that is killed while a stage trains: the run goes on, ends well and soon, and the server is told.

Real processes: `rlhf run` on a server that it started itself, which dies by SIGKILL after the first training steps.
"""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from alignment.workspace import Workspace

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
CHANGES = {"stages.sft.epochs": 400, "stages.sft.checkpoint_every": 100}
STAGES = ("sft", "responses", "preferences")


def test_a_server_that_is_killed_stops_no_training(
    make_recipe: Callable[..., Path], make_room: Callable[..., Any], tmp_path: Path
) -> None:
    recipe = make_recipe(tmp_path / "recipe", stages=STAGES, changes=CHANGES)
    room = make_room(recipe, tmp_path / "workspace")
    process = room.start("run", recipe)
    room.until(lambda: True if (room.root / "metrics" / "sft.prom").exists() else None, 200)
    [begun] = [
        run for run in room.post("/flow_runs/filter", {}) if run["parameters"]["request"]["workspace"] == str(room.root)
    ]
    server = json.loads((room.root / "services" / "prefect.json").read_text())
    time.sleep(6)  # long enough for a progress artifact on the dashboard
    os.killpg(server["pid"], signal.SIGKILL)
    killed = time.monotonic()
    report = room.report(1, 300)
    trained = time.monotonic() - killed
    assert process.wait(60) == 0, (room.root / "run.log").read_text()[-3000:]
    left = time.monotonic() - killed - trained
    print(f"the stages took {trained:.0f} s after the kill, and the exit {left:.0f} s more")
    said = (room.root / "run.log").read_text()
    assert "Traceback" not in said
    assert "did not answer" in said  # that the dashboard is away is said, once
    assert [stage["status"] for stage in report["stages"]] == ["completed"] * 4
    assert left < 20
    # The next command starts the server again, and it is told how the run ended.
    assert room.run("dashboard").returncode == 0

    def told() -> dict[str, Any] | None:
        run: dict[str, Any] = httpx.get(f"{room.api}/flow_runs/{begun['id']}", timeout=20).raise_for_status().json()
        return run if run["state_type"] == "COMPLETED" else None

    run = room.until(told, 30)
    assert run["name"] == "tiny-1"
    # And the same recipe, where nothing happens to the server, makes the same bits.
    other = make_room(recipe, tmp_path / "other")
    assert other.run("run", recipe).returncode == 0
    digests = [{one.name: one.digest for one in Workspace(root).artifacts()} for root in (room.root, other.root)]
    assert digests[0] == digests[1]
