"""Judging on a pool of Ray actors: the same artifact, to the bit, whoever judged and whoever died."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
JUDGES: dict[str, dict[str, Any]] = {
    "label_probabilities": {"kind": "label_probabilities", "model": "sft", "min_label_mass": 0.0},
    "generative": {"kind": "generative", "model": "sft", "form": "pairwise", "max_tokens": 8},
    "reward_model": {"kind": "reward_model", "model": "reward"},
    "pair_classifier": {"kind": "pair_classifier", "model": "classifier"},
}
CLASSIFIER = {"kind": "pair_classifier", "model": "sft", "preferences": "preferences", "batch_size": 4, "lora": None}
SHORT = {"stages.responses.limit": 40, "stages.responses.per_prompt": 6}


def changes(judge: str, **more: Any) -> dict[str, Any]:
    """Seven pairs of each prompt, in several pieces. Raters' votes count as well: a tiny model writes no verdict."""
    stage = {"kind": "judge", "responses": "responses", "judge": dict(JUDGES[judge]), "comparisons_per_prompt": 7,
             "min_agreement": 0.0, "calibration": "preferences", "weights": {"simulated": 0.5}}  # fmt: skip
    return {"stages.judged": stage, **SHORT, **({"stages.classifier": CLASSIFIER} if "class" in judge else {}), **more}


@pytest.fixture(scope="module")
def ready(run: Any) -> Any:
    """What the judges are, and what they judge, made once."""
    run.need("sft")
    run.made["responses"], _heard = run("responses", "before", SHORT)
    run.need("preferences", "reward")
    run.made["classifier"], _heard = run("classifier", "before", {"stages.classifier": CLASSIFIER})
    return run


def pieces(root: Path) -> list[Path]:
    return sorted(root.glob("partial/*/checkpoints/judged-*.json"))


@pytest.mark.parametrize("judge", sorted(JUDGES))
def test_two_workers_judge_what_one_judges(ready: Any, judge: str) -> None:
    one, alone = ready("judged", f"one-{judge}", changes(judge))
    two, together = ready("judged", f"two-{judge}", changes(judge, **{"resources.workers": 2}))
    assert one.key == two.key
    for name in ("judgements.jsonl", "votes.jsonl", "pairs.jsonl", "judge.json"):
        assert (Path(two.path) / name).read_bytes() == (Path(one.path) / name).read_bytes()
    assert two.digest == one.digest
    assert two.metrics == one.metrics
    steps = [(progress.step, progress.total) for progress in together.steps]
    assert len(steps) == len(alone.steps) >= 3
    assert steps[-1][0] == steps[-1][1] == alone.steps[-1].step
    assert two.cpu_seconds > 0


def test_a_killed_actor_changes_nothing_and_no_piece_is_judged_twice(ready: Any, tools: SimpleNamespace) -> None:
    slow = {"stages.judged": changes("generative")["stages.judged"]}
    slow["stages.judged"]["judge"] |= {"max_tokens": 96}
    one, alone = ready("judged", "one", SHORT | slow)
    root = ready.root / "killed"
    killer = tools.Killer(root, "1", lambda: len(pieces(root)) >= 1)
    two, heard = ready("judged", "killed", SHORT | slow | {"resources.workers": 2})
    assert killer.hit is not None
    assert two.digest == one.digest
    steps = [progress.step for progress in heard.steps]
    assert steps == sorted(set(steps))
    assert len(steps) == len(alone.steps)


def test_a_killed_run_goes_on_from_its_pieces(make_recipe: Any, tmp_path: Path) -> None:
    """The whole of `rlhf run` dies in the middle of judging, Ray and all; the next one judges the rest."""
    root = tmp_path / "workspace"
    stage = changes("generative")["stages.judged"]
    stage["judge"] |= {"max_tokens": 96}
    recipe = make_recipe(
        tmp_path / "recipe", stages=("sft", "responses", "preferences"), changes=SHORT | {"stages.judged": stage}
    )
    command = [sys.executable, "-m", "flows.cli", "run", str(recipe), "-w"]
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_HOME"}
    with (tmp_path / "first.log").open("wb") as log:
        first = subprocess.Popen([*command, str(root), "--set", "stages.judged.workers=2"], stdout=log, stderr=log,
                                 env=environment, start_new_session=True)  # fmt: skip
        end = time.monotonic() + 400
        while not pieces(root) and first.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        os.killpg(first.pid, signal.SIGKILL)
        first.wait(30)
    kept = {path: path.stat().st_mtime_ns for path in pieces(root)}
    assert kept, (tmp_path / "first.log").read_text()[-3000:]
    assert not (root / "artifacts" / "judged").exists()
    watched: dict[Path, int] = {}
    again = subprocess.Popen([*command, str(root)], env=environment, stdout=subprocess.DEVNULL)
    while again.poll() is None:
        for path in pieces(root):
            try:
                watched[path] = path.stat().st_mtime_ns
            except FileNotFoundError:  # the stage ended
                continue
        time.sleep(0.005)
    assert again.returncode == 0
    assert {path: watched[path] for path in kept} == kept  # not written again
    assert len(watched) > len(kept)
    other = tmp_path / "undisturbed"
    subprocess.run([*command, str(other)], env=environment, check=True, stdout=subprocess.DEVNULL)
    from alignment.workspace import Workspace

    assert Workspace(root).artifact("judged", 1).digest == Workspace(other).artifact("judged", 1).digest
    for place in (root, other):
        subprocess.run([sys.executable, "-m", "flows.cli", "dashboard", "--stop", "-w", str(place)], env=environment,
                       check=True, stdout=subprocess.DEVNULL)  # fmt: skip
