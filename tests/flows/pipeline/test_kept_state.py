"""What a run keeps, by real processes: two at once, copies, damage, removal while it works, and a kill at the registry.

The recipe has SFT and an evaluation on the tiny model, so that a run takes seconds and still registers a version.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment.workspace import Workspace
from flows.pipeline import pipeline as pipelines

pytestmark = pytest.mark.timeout(900)
STAGES = ("sft", "evaluation")
CHANGES: dict[str, Any] = {
    "stages.evaluation.model": "sft",
    "stages.evaluation.against": ["base"],
    "stages.evaluation.reward": None,
    "stages.sft.epochs": 2,
}
Rlhf = Callable[..., Any]
MakeRecipe = Callable[..., Path]


@pytest.fixture(scope="module")
def whole(rlhf: Rlhf, make_recipe: MakeRecipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe, and a workspace with one whole run of it. Tests take copies."""
    folder = tmp_path_factory.mktemp("whole")
    recipe = make_recipe(folder / "recipe", stages=STAGES, changes=CHANGES)
    ended = rlhf("run", recipe, "-w", folder / "workspace")
    assert (ended.code, ended.err) == (0, "")
    return recipe, folder / "workspace"


def report(root: Path, run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / "runs" / run / "report.json").read_text())
    return found


def cached(root: Path, run: str) -> dict[str, bool]:
    return {stage["name"]: stage["cached"] for stage in report(root, run)["stages"]}


def damage(path: Path) -> None:
    """Zeroes the file's second half."""
    path.chmod(0o644)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2)
        file.write(bytes(size - size // 2))


def test_a_copied_workspace_reads_its_own_files_and_no_others(
    rlhf: Rlhf, whole: tuple[Path, Path], tmp_path: Path
) -> None:
    recipe, root = whole
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    rlhf("dashboard", "--stop", "-w", root)  # its server would go on writing there
    away = root.rename(tmp_path / "away")
    try:
        ended = rlhf("run", recipe, "-w", copy)
        assert (ended.code, ended.err) == (0, "")
        assert set(cached(copy, "tiny-2").values()) == {True}
        assert str(root) not in (copy / "runs/tiny-2/report.json").read_text()
        answered = rlhf("generate", "policy@champion", "-p", "What colour is the cat?", "-w", copy, "--json")
        assert answered.code == 0, answered.err
        shown = json.loads(rlhf("models", "show", "policy@champion", "-w", copy, "--json").out)
        assert shown["intact"]
        # Another threshold: the gate decides anew, and a version is built of the copy's files.
        ended = rlhf("run", recipe, "-w", copy, "--set", "gate.conditions=[{metric: kl, below: 999}]")
        assert (ended.code, ended.err) == (0, "")
        shown = json.loads(rlhf("models", "show", "policy@champion", "-w", copy, "--json").out)
        assert (shown["version"]["version"], shown["intact"]) == (2, True)
    finally:
        away.rename(root)


def test_a_damaged_artifact_is_said_and_made_again(rlhf: Rlhf, whole: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, root = whole
    shutil.copytree(root, tmp_path / "w")
    damage(tmp_path / "w/artifacts/sft/v1/adapter_model.safetensors")
    ended = rlhf("run", recipe, "-w", tmp_path / "w")
    assert ended.code == 0, ended.err
    [line] = [line for line in ended.out.splitlines() if "is damaged and is not used" in line]
    assert line.startswith("sft v1 is damaged and is not used: the files in ")
    again = cached(tmp_path / "w", "tiny-2")
    assert (again["sft"], again["evaluation"]) == (False, True)  # the same bits again, so what follows is as it was
    first, second = (Workspace(tmp_path / "w").artifact("sft", version) for version in (1, 2))
    assert first.digest == second.digest
    assert Workspace(tmp_path / "w").damage(second) is None


def test_removal_spares_what_a_run_under_way_uses(
    rlhf: Rlhf, whole: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, root = whole
    shutil.copytree(root, tmp_path / "w")
    shutil.rmtree(tmp_path / "w/registry")  # what is registered is kept anyway
    (tmp_path / "w/mlflow.db").unlink()
    removed: list[Any] = []
    decide = pipelines.decide

    def remove_then_decide(run: Any) -> None:
        words = ("gc", "-w", tmp_path / "w", "--runs", "0", "--days", "0", "--yes", "--json")
        outcome = subprocess.run(
            [sys.executable, "-m", "flows.cli", *words], capture_output=True, text=True, check=True
        )
        removed.append(json.loads(outcome.stdout))
        decide(run)

    monkeypatch.setattr(pipelines, "decide", remove_then_decide)
    ended = rlhf("run", recipe, "-w", tmp_path / "w", "--set", "stages.evaluation.kl_prompts=2")
    assert ended.code == 0, ended.err
    [gone] = removed
    assert [one["path"] for one in gone["found"]] == [
        "artifacts/evaluation/v1"
    ]  # the run before used it; this one does not
    shown = json.loads(rlhf("models", "show", "policy@champion", "-w", tmp_path / "w", "--json").out)
    assert shown["intact"]
    assert Workspace(tmp_path / "w").artifact("evaluation", 2)
    assert rlhf("gc", "-w", tmp_path / "w", "--runs", "0", "--yes", "--json").code == 0
    shutil.rmtree(tmp_path / "w/registry")
    assert rlhf("gc", "-w", tmp_path / "w", "--runs", "0", "--yes", "--json").code == 0
    assert list(Workspace(tmp_path / "w").artifacts()) == []
    assert rlhf("run", recipe, "-w", tmp_path / "w", "--only", "sft").code == 0
    assert [(one.name, one.version) for one in Workspace(tmp_path / "w").artifacts()] == [("sft", 2)]


def test_a_report_that_fails_hides_no_error(
    rlhf: Rlhf, make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(tmp_path / "recipe", stages=("sft",), changes={"stages.sft.learning_rate": 1e38})

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the report's own trouble")

    monkeypatch.setattr(pipelines, "build_report", broken)
    ended = rlhf("run", recipe, "-w", tmp_path / "w")
    assert ended.code == 1
    assert "the report's own trouble" not in ended.out.splitlines()[-4:]
    assert "FloatingPointError" in ended.out + ended.err


@pytest.mark.slow
def test_two_first_runs_at_once_both_end_whole(
    make_recipe: MakeRecipe, make_room: Callable[..., Any], tmp_path: Path
) -> None:
    """One name each, one training, one server, one registry; it broke for good when MLflow's tables were made twice."""
    room = make_room(make_recipe(tmp_path / "recipe", stages=STAGES, changes=CHANGES), tmp_path / "workspace")
    ended: list[Any] = []
    threads = [threading.Thread(target=lambda: ended.append(room.run("run", room.recipe))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one.returncode for one in ended] == [0, 0], [one.stdout + one.stderr for one in ended]
    assert sorted(path.name for path in (room.root / "runs").iterdir()) == ["tiny-1", "tiny-2"]
    assert [(one.name, one.version) for one in Workspace(room.root).artifacts()] == [("evaluation", 1), ("sft", 1)]
    made = [cached(room.root, run) for run in ("tiny-1", "tiny-2")]
    for stage in STAGES:
        assert sorted(one[stage] for one in made) == [False, True]
    listed = json.loads(room.run("models", "list", "--json").stdout)
    assert [(one["version"], one["aliases"]) for one in listed] == [(1, ["champion"])]


@pytest.mark.slow
def test_a_run_killed_in_its_registrys_first_moment_goes_on(
    make_recipe: MakeRecipe, make_room: Callable[..., Any], tmp_path: Path
) -> None:
    room = make_room(make_recipe(tmp_path / "recipe", stages=STAGES, changes=CHANGES), tmp_path / "workspace")
    for number in (signal.SIGKILL, signal.SIGINT):
        process = room.start("run", room.recipe)
        room.until(lambda: next(iter(room.root.glob("*mlflow.db*.tmp")), None), 300)
        time.sleep(1.0)
        os.killpg(process.pid, number)
        process.wait(120)
        assert not (room.root / "mlflow.db").exists()
    ended = room.run("run", room.recipe)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    listed = json.loads(room.run("models", "list", "--json").stdout)
    assert [(one["version"], one["aliases"]) for one in listed] == [(1, ["champion"])]
    assert not list(room.root.rglob("*.tmp"))
