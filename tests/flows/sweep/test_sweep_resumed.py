"""A sweep with two runs at once that is killed goes on where it stopped, and makes shared stages once."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeRecipe

pytestmark = [pytest.mark.timeout(1200), pytest.mark.slow]
STAGES = ("sft", "responses", "preferences", "dpo", "evaluation")
CHANGES = {
    "stages.dpo.epochs": 40, "stages.dpo.checkpoint_every": 2,
    "stages.evaluation.reward": None, "stages.evaluation.against": ["base"],
}  # fmt: skip


def own_processes(mark: str) -> list[int]:
    """The processes whose command line names the workspace."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode("utf-8", "replace").split("\0")
        except OSError:
            continue
        if "run" in words and any(mark in word for word in words):
            found.append(int(path.parent.name))
    return found


def test_a_killed_sweep_goes_on(
    make_room: Callable[[Path, Path], Any], make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    recipe = make_recipe(tmp_path / "recipe", stages=STAGES, changes=CHANGES)
    room = make_room(recipe, tmp_path / "workspace")
    command = ("sweep", recipe, "--over", "stages.dpo.beta=0.1,0.5", "--parallel", "2")

    def in_dpo() -> bool | None:
        """A variant trains, and has saved a step; the other is at work too."""
        shared = room.root / "artifacts" / "preferences" / "v1"
        begun = shared.exists() and any(room.root.glob("partial/*/checkpoints/checkpoint-*"))
        return True if begun and len(own_processes(str(room.root))) == 2 else None

    process = room.start(*command)
    room.until(in_dpo, 600)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(30)
    end = time.monotonic() + 60
    while own_processes(str(room.root)) and time.monotonic() < end:
        time.sleep(0.2)
    assert own_processes(str(room.root)) == []  # they end with who started them, and save their step
    assert len(list(room.root.glob("artifacts/dpo/v*"))) < 2
    assert not list(room.root.glob("sweeps/*/sweep.json"))

    ended = room.run(*command)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    [path] = room.root.glob("sweeps/*/sweep.json")
    report = json.loads(path.read_text("utf-8"))
    assert [one["outcome"] for one in report["variants"]].count("best") == 1
    made = {stage: len(list(room.root.glob(f"artifacts/{stage}/v*"))) for stage in STAGES}
    assert made == {"sft": 1, "responses": 1, "preferences": 1, "dpo": 2, "evaluation": 2}
    # Two processes wanted the same stages at once; what each said is kept, with the variant's name before it.
    assert "[beta=0.1, seed 5] " in ended.stdout
    assert len(list(path.parent.glob("logs/*.log"))) == 2
