"""SIGTERM while a stage trains: the step under way ends, a checkpoint of it is written, and the next run goes on there.

One workspace, five processes: the first two are told to end during SFT, the third during PPO, the fourth during GRPO,
and the fifth is left alone. What they make has the same bits as what one undisturbed process makes.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from alignment.training.checkpoints import COMPLETE
from alignment.workspace import Workspace
from flows.shutdown import TERMINATED, TOTAL_SECONDS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
REWARDS = [{"kind": "length_penalty", "unit": "characters", "free": 4, "full": 14}]
RL = {
    "model": "sft", "steps": 60, "episodes": 8, "batch_size": 4, "learning_rate": 1e-3, "checkpoint_every": 1000,
    "sampling": {"max_new_tokens": 6}, "lora": {"rank": 4, "alpha": 8}, "rewards": REWARDS,
}  # fmt: skip
CHANGES = {
    "stages.sft.epochs": 100,
    "stages.sft.checkpoint_every": 1000,
    "stages.sft.lora": {"rank": 4, "alpha": 8, "dropout": 0.1},  # random numbers are part of what goes on
    "stages.ppo": {"kind": "ppo", "critic_learning_rate": 1e-3, "epochs": 2, "minibatches": 2} | RL,
    "stages.grpo": {"kind": "grpo", "per_prompt": 4, "beta": 0.05} | RL,
}
STAGES = ("sft", "ppo", "grpo")
PATIENCE = 400.0  # seconds for one process, on a machine that has other things to do


def checkpoints(root: Path) -> list[int]:
    """The steps of the whole checkpoints of the stage under way; PPO's are whole when they have their name."""
    trainers = [path.parent for path in root.glob(f"partial/*/checkpoints/checkpoint-*/{COMPLETE}")]
    found = [*trainers, *root.glob("partial/*/checkpoints/step-*")]
    return sorted(int(path.name.split("-")[1]) for path in found)


def newest_steps(root: Path) -> set[int]:
    """The newest step that the stage under way knew of when its checkpoint was written."""
    states = [
        *root.glob("partial/*/checkpoints/*/trainer_state.json"),
        *root.glob("partial/*/checkpoints/*/state.json"),
    ]
    found = set()
    for path in states:
        state = json.loads(path.read_text())
        found.add(len(state["state"]["history"]) if "state" in state else max(r["step"] for r in state["log_history"]))
    return found


@dataclass
class Told:
    """What a process did that was told to end: how soon, how, and which checkpoints there were then."""

    code: int
    seconds: float
    kept: list[int]
    newest: set[int]
    said: str
    report: dict[str, Any]


@dataclass
class Story:
    root: Path
    undisturbed: Path
    told: list[Told]


def begin(recipe: Path, root: Path, log: Path) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_HOME"}
    command = [sys.executable, "-m", "flows.cli", "run", str(recipe), "-w", str(root)]
    with log.open("wb") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, cwd=ROOT, env=environment, start_new_session=True)


def tell(recipe: Path, root: Path, log: Path, stage: str, number: int) -> Told:
    """Runs the recipe, and sends SIGTERM when ``stage`` has made its first step in this process."""
    process = begin(recipe, root, log)
    end = time.monotonic() + PATIENCE
    while not (root / "metrics" / f"{stage}.prom").exists():
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            pytest.fail(f"{stage} did not come so far:\n{log.read_text()[-3000:]}")
        time.sleep(0.002)
    began = time.monotonic()
    process.terminate()
    code = process.wait(PATIENCE)
    report = json.loads((root / "runs" / f"tiny-{number}" / "report.json").read_text())
    return Told(code, time.monotonic() - began, checkpoints(root), newest_steps(root), log.read_text(), report)


@pytest.fixture(scope="module")
def story(
    rlhf: Callable[..., Any], make_recipe: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Story:
    folder = tmp_path_factory.mktemp("sigterm")
    recipe = make_recipe(folder / "recipe", stages=("sft",), changes=CHANGES)
    root, other = folder / "workspace", folder / "undisturbed"
    told = [
        tell(recipe, root, folder / f"{number}.log", stage, number)
        for number, stage in enumerate(("sft", *STAGES), start=1)
    ]
    for where, log in ((root, folder / "last.log"), (other, folder / "undisturbed.log")):
        assert begin(recipe, where, log).wait(PATIENCE) == 0, log.read_text()[-3000:]
    return Story(root, other, told)


def test_it_ends_within_the_bound_and_with_the_code_of_a_signal(story: Story) -> None:
    assert [one.code for one in story.told] == [TERMINATED] * 4
    assert all(one.seconds < TOTAL_SECONDS for one in story.told)  # else it is SIGKILL


def test_the_checkpoint_is_of_the_very_step(story: Story) -> None:
    """The recipe asks for none before the thousandth step; nothing was done after it that it does not hold."""
    first, second, ppo, grpo = story.told
    for one in (first, ppo, grpo):
        assert len(one.kept) == 1
        assert one.newest == set(one.kept)
    assert second.kept[0] == first.kept[0] < second.kept[1]  # it went on, and did not begin anew


def test_it_says_how_to_go_on_and_what_was_done(story: Story) -> None:
    for one in story.told:
        assert "stopped; the same command goes on where it stopped" in one.said
        assert "Traceback" not in one.said
    done = [[stage["status"] for stage in one.report["stages"]] for one in story.told]
    assert done == [["completed"] * count + ["failed"] for count in (1, 1, 2, 3)]


def test_the_artifacts_are_those_of_an_undisturbed_run(story: Story) -> None:
    told, undisturbed = (
        {artifact.name: (artifact.version, artifact.digest) for artifact in Workspace(root).artifacts()}
        for root in (story.root, story.undisturbed)
    )
    assert set(told) == set(undisturbed) == set(STAGES)
    assert all(told[stage] == undisturbed[stage] for stage in STAGES if stage != "ppo")  # whose curves hold seconds
    for stage in STAGES:
        one, other = (Workspace(root).artifact(stage, 1) for root in (story.root, story.undisturbed))
        weights = [(Path(artifact.path) / "adapter_model.safetensors").read_bytes() for artifact in (one, other)]
        assert weights[0] == weights[1]
        assert (one.tokens_trained, one.tokens_sampled) == (other.tokens_trained, other.tokens_sampled)


def test_nothing_is_left_over(story: Story) -> None:
    assert [path for path in (story.root / "partial").iterdir() if path.is_dir()] == []
    assert not list(story.root.glob("metrics/*.prom"))
