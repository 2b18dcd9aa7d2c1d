"""Stages of the tiny recipe, in this process or on a real Ray of this machine, as their settings say."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alignment.models.base_model import prepare_base
from alignment.recipe.files import resolve_data
from alignment.recipe.load import load_recipe
from alignment.records import Artifact
from alignment.stage import Progress
from alignment.workspace import Workspace
from flows.cluster import stop
from flows.monitoring.progress import Silent, listener
from flows.pipeline.stage_task import execute, make_job

MakeRecipe = Callable[..., Path]
REWARDS = [{"kind": "length_penalty", "unit": "characters", "free": 4, "full": 14}]
GROUP = {
    "model": "sft", "steps": 3, "episodes": 8, "per_prompt": 4, "batch_size": 4, "beta": 0.05, "learning_rate": 1e-2,
    "sampling": {"max_new_tokens": 6}, "lora": {"rank": 4, "alpha": 8}, "warmup": 0.0, "rewards": REWARDS,
}  # fmt: skip
PPO = {
    "kind": "ppo", "model": "sft", "steps": 4, "episodes": 6, "epochs": 2, "minibatches": 2, "batch_size": 4,
    "learning_rate": 1e-2, "critic_learning_rate": 1e-2, "sampling": {"max_new_tokens": 6}, "warmup": 0.0,
    "lora": {"rank": 4, "alpha": 8}, "rewards": REWARDS, "whiten_rewards": True,
    "kl_target": 0.5, "kl_horizon": 50, "checkpoint_every": 1,
}  # fmt: skip


class Heard(Silent):
    """Keeps the progress that it hears."""

    def __init__(self) -> None:
        self.steps: list[Progress] = []

    def stage_progress(self, name: str, progress: Progress) -> None:
        self.steps.append(progress)


class Runner:
    """Runs stages of the tiny recipe one after the other, each in its process or on Ray as the changes say."""

    def __init__(self, make_recipe: MakeRecipe, root: Path) -> None:
        self.make_recipe, self.root = make_recipe, root
        self.made: dict[str, Artifact] = {}
        self.count = 0

    def __call__(
        self, stage: str, where: str, changes: dict[str, Any] | None = None, rows: int = 11
    ) -> tuple[Artifact, Heard]:
        """The artifact of a stage in the workspace ``where``, and the progress that its run's listener heard.

        ``rows`` is how many demonstrations there are.
        """
        self.count += 1
        path = self.make_recipe(self.root / f"recipe-{self.count}", changes=changes)
        lines = (path.parent / "demonstrations.jsonl").read_text().splitlines(keepends=True)
        (path.parent / "demonstrations.jsonl").write_text("".join(lines[:rows]))
        recipe, workspace = load_recipe(path), Workspace(self.root / where)
        if "base" not in self.made:
            self.made["base"] = prepare_base(Workspace(self.root), recipe.model)
        heard = Heard()
        token = listener.set(heard)
        try:
            job = make_job(stage, recipe, self.made, resolve_data(recipe, path), workspace)
            return Artifact.model_validate(execute(job)), heard
        finally:
            listener.reset(token)

    def need(self, *stages: str) -> None:
        """Makes what other stages start from, once."""
        for stage in stages:
            if stage not in self.made:
                self.made[stage], _heard = self(stage, "before")


@pytest.fixture(scope="module")
def run(make_recipe: MakeRecipe, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    yield Runner(make_recipe, tmp_path_factory.mktemp("cluster"))
    stop()


def curve(artifact: Artifact, name: str = "loss") -> list[float]:
    return [value for _step, value in json.loads((Path(artifact.path) / "curves.json").read_text())[name]]


def norm(artifact: Artifact) -> float:
    """Of all weights that the artifact holds."""
    from safetensors.torch import load_file

    [file] = Path(artifact.path).glob("*model.safetensors")
    return sum(float(weight.double().square().sum()) for weight in load_file(file).values()) ** 0.5


def processes_of(root: Path) -> dict[str, int]:
    """The processes of the workers of the stage under way, by their names: ranks, or rollout-0 and so on."""
    found = {}
    for path in root.glob("partial/*/ray/workers/*.json"):
        try:
            found[path.stem] = int(json.loads(path.read_text())["pid"])
        except (OSError, ValueError):
            continue  # it was just being replaced
    return found


class Killer:
    """Sends a signal, once, to the worker ``name`` of the stage under way below ``root`` when a condition holds."""

    def __init__(self, root: Path, name: str, condition: Callable[[], bool], what: int = signal.SIGKILL) -> None:
        self.root, self.name, self.condition, self.what = root, name, condition, what
        self.hit: int | None = None
        self.thread = threading.Thread(target=self._loop, daemon=True)
        self.thread.start()

    def _loop(self) -> None:
        end = time.monotonic() + 300
        while time.monotonic() < end:
            if self.condition() and self.name in (processes := processes_of(self.root)):
                self.hit = processes[self.name]
                os.kill(self.hit, self.what)
                return
            time.sleep(0.02)


@pytest.fixture(scope="session")
def tools() -> SimpleNamespace:
    """The helpers above, for test modules: there are no packages under tests to import them from."""
    return SimpleNamespace(curve=curve, norm=norm, processes_of=processes_of, Killer=Killer, GROUP=GROUP, PPO=PPO)
