"""A run that is killed, again and again, ends with the same bits as one that nobody disturbed.

One workspace, five processes: the first dies by SIGKILL while SFT writes a checkpoint, the second between two stages,
the third in the middle of DPO, the fourth is interrupted by Ctrl-C, and the fifth is left alone.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from alignment.training.checkpoints import COMPLETE
from alignment.workspace import Workspace

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]
ROOT = Path(__file__).parents[2]
STAGES = ("sft", "responses", "preferences", "dpo")
CHANGES = {
    "stages.sft.epochs": 10,  # 30 steps
    "stages.sft.checkpoint_every": 2,
    "stages.dpo.epochs": 4,
    "stages.dpo.checkpoint_every": 2,
}
PATIENCE = 400.0  # seconds for one process, on a machine that has other things to do


@contextmanager
def hearing_ctrl_c() -> Iterator[None]:
    """A shell starts what runs in its background deaf to Ctrl-C, and so are its children: not those started here."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@dataclass
class Attempt:
    """One process on the workspace: what it did until it was stopped."""

    root: Path
    recipe: Path
    log: Path
    seen: dict[str, set[int]] = field(default_factory=dict)  # stage → steps of the checkpoints that it began to write
    code: int | None = None

    def start(self) -> "Attempt":
        self.began = time.time()
        command = [sys.executable, "-m", "flows.cli", "run", str(self.recipe), "-w", str(self.root)]
        environment = {k: v for k, v in os.environ.items() if k != "PREFECT_HOME"}
        with self.log.open("wb") as log, hearing_ctrl_c():
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=ROOT, env=environment, start_new_session=True
            )
        return self

    def done(self, stage: str) -> bool:
        return (self.root / "artifacts" / stage / "v1").exists()

    def checkpoints(self, stage: str, before: str) -> dict[int, bool]:
        """The checkpoints of a training stage under way, by step: whether each is whole. Stages run in order."""
        if (not self.done(before) and before != "base") or self.done(stage):
            return {}
        found = {}
        for path in self.root.glob("partial/*/checkpoints/checkpoint-*"):
            step = int(path.name.split("-")[1])
            found[step] = (path / COMPLETE).exists()
            try:
                # Of a file in it: a folder's own time also changes while it is rotated away.
                if (path / "trainer_state.json").stat().st_mtime > self.began:
                    self.seen.setdefault(stage, set()).add(step)
            except FileNotFoundError:  # rotated away
                continue
        return found

    def until(self, condition: Callable[[], bool], with_signal: signal.Signals) -> "Attempt":
        """Sends a signal to the process group once ``condition`` holds, having made sure while nothing moves."""
        deadline = time.monotonic() + PATIENCE
        while True:
            if self.process.poll() is not None:
                pytest.fail(f"ended before it could be stopped:\n{self.log.read_text()[-3000:]}")
            if time.monotonic() > deadline:
                os.killpg(self.process.pid, signal.SIGKILL)
                pytest.fail(f"never came to where it should be stopped:\n{self.log.read_text()[-3000:]}")
            if condition():
                os.killpg(self.process.pid, signal.SIGSTOP)
                time.sleep(0.02)
                if condition():
                    break
                os.killpg(self.process.pid, signal.SIGCONT)
            time.sleep(0.001)
        os.killpg(self.process.pid, with_signal)
        os.killpg(self.process.pid, signal.SIGCONT)
        self.code = self.process.wait(PATIENCE)
        return self

    def finish(self) -> "Attempt":
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None and time.monotonic() < deadline:
            self.checkpoints("sft", "base")
            self.checkpoints("dpo", "preferences")
            time.sleep(0.001)
        self.code = self.process.wait(1)
        return self

    @property
    def said(self) -> str:
        return self.log.read_text()


@dataclass
class Story:
    """What happened to the workspace, and what an undisturbed run made of the same recipe."""

    root: Path
    undisturbed: Path
    attempts: list[Attempt]
    whole: dict[str, int]  # attempt → the newest whole checkpoint when it died
    broken: int  # the checkpoint that was half written when the first attempt died


def writing_a_checkpoint(attempt: Attempt) -> Callable[[], bool]:
    def condition() -> bool:
        found = attempt.checkpoints("sft", "base")
        whole = [step for step, complete in found.items() if complete]
        return bool(whole) and max(found) > max(whole) >= 4

    return condition


def in_dpo(attempt: Attempt, after: int) -> Callable[[], bool]:
    return lambda: any(step > after and ok for step, ok in attempt.checkpoints("dpo", "preferences").items())


@pytest.fixture(scope="module")
def story(
    rlhf: Callable[..., Any], make_recipe: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Story:
    folder = tmp_path_factory.mktemp("kill")
    recipe = make_recipe(folder / "recipe", stages=STAGES, changes=CHANGES)
    root = folder / "workspace"
    attempts = [Attempt(root, recipe, folder / f"{number}.log") for number in range(5)]
    first, second, third, fourth, fifth = attempts

    first.start().until(writing_a_checkpoint(first), signal.SIGKILL)
    sft = first.checkpoints("sft", "base")
    whole = {"sft": max(step for step, complete in sft.items() if complete)}
    broken = max(sft)

    def between() -> bool:
        second.checkpoints("sft", "base")
        return second.done("responses") and not second.done("preferences")

    second.start().until(between, signal.SIGKILL)
    third.start().until(in_dpo(third, after=2), signal.SIGKILL)
    whole["dpo"] = max(step for step, complete in third.checkpoints("dpo", "preferences").items() if complete)
    fourth.start().until(in_dpo(fourth, after=whole["dpo"]), signal.SIGINT)
    whole["dpo again"] = max(step for step, ok in fourth.checkpoints("dpo", "preferences").items() if ok)
    fifth.start().finish()

    undisturbed = Attempt(folder / "undisturbed", recipe, folder / "undisturbed.log").start().finish()
    assert undisturbed.code == 0, undisturbed.said
    return Story(root, folder / "undisturbed", attempts, whole, broken)


def test_the_weights_are_the_same_bits(story: Story) -> None:
    for stage in ("sft", "dpo"):
        file = Path("artifacts") / stage / "v1" / "adapter_model.safetensors"
        assert (story.root / file).read_bytes() == (story.undisturbed / file).read_bytes()


def test_every_artifact_is_the_same(story: Story) -> None:
    killed, undisturbed = (
        {artifact.name: (artifact.version, artifact.digest) for artifact in Workspace(root).artifacts()}
        for root in (story.root, story.undisturbed)
    )
    assert killed == undisturbed
    assert set(killed) == set(STAGES)


def test_the_figures_are_the_same(story: Story) -> None:
    for stage in ("sft", "dpo"):
        killed, undisturbed = (Workspace(root).artifact(stage, 1) for root in (story.root, story.undisturbed))
        assert killed.metrics == undisturbed.metrics
        assert killed.tokens_trained == undisturbed.tokens_trained


def test_sigkill_leaves_no_time_for_words(story: Story) -> None:
    assert [attempt.code for attempt in story.attempts[:3]] == [-signal.SIGKILL] * 3


def test_sft_went_on_from_its_last_whole_checkpoint(story: Story) -> None:
    """Not from the start, and not from the one that was half written."""
    assert story.broken > story.whole["sft"] >= 4
    assert min(story.attempts[1].seen["sft"]) == story.broken  # it was written again, whole


def test_dpo_went_on_from_its_last_whole_checkpoint(story: Story) -> None:
    assert min(story.attempts[2].seen["dpo"]) == 2
    assert min(story.attempts[3].seen["dpo"]) > story.whole["dpo"]
    assert min(story.attempts[4].seen["dpo"]) > story.whole["dpo again"]


def test_what_was_finished_is_not_done_again(story: Story) -> None:
    """Five processes, one artifact of each stage; the last run took all but DPO from the cache."""
    report = json.loads((story.root / "runs" / "tiny-5" / "report.json").read_text())
    cached = {stage["name"]: stage["cached"] for stage in report["stages"]}
    assert cached == {"base": True, "sft": True, "responses": True, "preferences": True, "dpo": False}
    assert story.attempts[4].code == 0


def test_ctrl_c_says_how_to_go_on(story: Story) -> None:
    interrupted = story.attempts[3]
    assert interrupted.code == 1
    assert "stopped; the same command goes on where it stopped" in interrupted.said
    assert "Traceback" not in interrupted.said
    report = json.loads((story.root / "runs" / "tiny-4" / "report.json").read_text())
    assert [stage["status"] for stage in report["stages"]] == ["completed"] * 4 + ["failed"]


def test_nothing_is_left_over(story: Story) -> None:
    assert [path for path in (story.root / "partial").iterdir() if path.is_dir()] == []
