"""Stages on real Ray, two workers on this machine: the curves of one, deaths that change nothing, hangs that end."""

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from alignment.faults import InputError, StageError
from alignment.loading import load_recipe, resolve_data
from alignment.models.base import prepare_base
from alignment.records import Artifact
from alignment.stage import Progress
from alignment.wiring import wiring_faults
from alignment.workspace import Workspace
from flows.cluster import on_ray
from flows.progress import Silent, listener
from flows.stages import execute, make_job

ROUNDING = 1e-4  # relative, of each point of a loss curve in float32: the order of sums alone differs
GRPO = {
    "kind": "grpo", "model": "sft", "steps": 3, "episodes": 8, "per_prompt": 4, "batch_size": 4, "beta": 0.05,
    "learning_rate": 1e-2, "sampling": {"max_new_tokens": 6}, "lora": {"rank": 4, "alpha": 8}, "warmup": 0.0,
    "rewards": [{"kind": "length_penalty", "unit": "characters", "free": 4, "full": 14}],
}  # fmt: skip
RLOO = {**GRPO, "kind": "rloo"}
PPO = {
    "kind": "ppo", "model": "sft", "steps": 1, "episodes": 4, "rewards": GRPO["rewards"],
    "sampling": {"max_new_tokens": 4},
}  # fmt: skip
STALL = 120  # seconds: a busy machine takes most of them until the workers have imported what they need
MakeRecipe = Callable[..., Path]


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

    def __call__(self, stage: str, where: str, changes: dict[str, Any] | None = None) -> tuple[Artifact, Heard]:
        """The artifact of a stage in the workspace ``where``, and the progress that its run's listener heard."""
        self.count += 1
        path = self.make_recipe(self.root / f"recipe-{self.count}", changes=changes)
        lines = (path.parent / "demonstrations.jsonl").read_text().splitlines(keepends=True)
        (path.parent / "demonstrations.jsonl").write_text("".join(lines[:11]))
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
    import ray

    ray.shutdown()


def loss(artifact: Artifact) -> list[float]:
    return [value for _step, value in json.loads((Path(artifact.path) / "curves.json").read_text())["loss"]]


def norm(artifact: Artifact) -> float:
    """Of all weights that the artifact holds."""
    from safetensors.torch import load_file

    [file] = Path(artifact.path).glob("*model.safetensors")
    return sum(float(weight.double().square().sum()) for weight in load_file(file).values()) ** 0.5


STAGES = {  # one more than fits: 11 demonstrations in batches of 10 leave one for two workers
    "sft": ((), {"stages.sft.batch_size": 10}),
    "dpo": (("sft", "responses", "preferences"), {"stages.dpo.batch_size": 4}),
    "reward": (("sft", "responses", "preferences"), {}),
    "grpo": (("sft",), {"stages.grpo": GRPO}),
    "rloo": (("sft",), {"stages.rloo": RLOO}),
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("stage", STAGES)
def test_two_workers_take_the_steps_of_one(run: Runner, stage: str) -> None:
    before, changes = STAGES[stage]
    run.need(*before)
    one, alone = run(stage, "one", changes)
    two, together = run(stage, "two", changes | {"resources.workers": 2})
    assert one.key != two.key
    assert len(loss(one)) > 2
    assert loss(two) == pytest.approx(loss(one), rel=ROUNDING, abs=ROUNDING / 10)
    assert norm(two) == pytest.approx(norm(one), rel=ROUNDING)
    assert [(p.step, p.total) for p in together.steps] == [(p.step, p.total) for p in alone.steps]
    assert two.work_seconds > 0
    assert {path.name for path in Path(two.path).iterdir()} == {path.name for path in Path(one.path).iterdir()}


def workers_of_partial(root: Path) -> dict[str, int]:
    """The processes of the workers of the stage under way, by rank."""
    found = {}
    for path in root.glob("partial/*/ray/workers/*.json"):
        found[path.stem] = int(json.loads(path.read_text())["pid"])
    return found


def when(condition: Callable[[], bool], act: Callable[[], None]) -> threading.Thread:
    """Acts, once, as soon as a condition holds."""

    def loop() -> None:
        end = time.monotonic() + 300
        while time.monotonic() < end:
            if condition():
                act()
                return
            time.sleep(0.02)

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    return thread


LONG = {"stages.sft.epochs": 60, "stages.sft.batch_size": 10, "stages.sft.checkpoint_every": 10, "resources.workers": 2}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_worker_changes_nothing(run: Runner) -> None:
    undisturbed, _heard = run("sft", "undisturbed", LONG)
    killed: list[int] = []
    root = run.root / "killed"

    def kill() -> None:
        killed.append(workers_of_partial(root)["1"])
        os.kill(killed[0], signal.SIGKILL)

    def trained_on() -> bool:
        return any(root.glob("partial/*/checkpoints/checkpoint-*/complete"))

    thread = when(trained_on, kill)
    artifact, heard = run("sft", "killed", LONG)
    thread.join()
    assert killed
    assert artifact.digest == undisturbed.digest  # every file, to the bit
    steps = [progress.step for progress in heard.steps]
    assert steps.count(1) == 1  # it went on from a checkpoint, not from the start
    assert steps[-1] == 120


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hang_ends_with_the_stacks_of_all_workers(run: Runner, caplog: pytest.LogCaptureFixture) -> None:
    root = run.root / "hang"
    stopped: list[int] = []

    def stop() -> None:
        stopped.append(workers_of_partial(root)["1"])
        os.kill(stopped[0], signal.SIGSTOP)

    when(lambda: any(root.glob("partial/*/checkpoints/checkpoint-*/complete")), stop)
    try:
        with caplog.at_level(logging.ERROR), pytest.raises(StageError, match=r"no step in 120 s .*stacks are in"):
            run("sft", "hang", LONG | {"resources.stall_seconds": STALL})
    finally:
        for process in stopped:
            try:
                os.kill(process, signal.SIGCONT)
            except ProcessLookupError:
                continue
    assert stopped
    text = caplog.text
    for process in [*workers_of_partial(root).values()]:
        assert f"process {process}:\n" in text
    assert "all_reduce" in text or "training_step" in text  # where rank 0 waits
    [kept] = root.glob("partial/*/stacks.txt")
    assert kept.read_text() in text


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_work_that_cannot_be_done_is_not_tried_again(run: Runner) -> None:
    """The faults of a stage come back as they are from its workers."""
    with pytest.raises(StageError, match="no demonstration has an answer within max_length=1 tokens"):
        run("sft", "fails", {"stages.sft.max_length": 1, "resources.workers": 2})


def faults(make_recipe: MakeRecipe, folder: Path, changes: dict[str, Any]) -> dict[str | None, str]:
    found = wiring_faults(load_recipe(make_recipe(folder, changes=changes)))
    return {fault.field: f"{fault.problem}; {fault.remedy}" for fault in found}


def test_workers_share_batches_evenly(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    found = faults(make_recipe, tmp_path, {"resources.workers": 3, "stages.dpo.gradient_accumulation": 6})
    assert set(found) == {f"stages.{name}.batch_size" for name in ("sft", "reward", "dpo")}
    assert found["stages.sft.batch_size"] == "3 workers cannot share batches of 4; give a multiple of 3"
    assert "set batch_size: 24 and gradient_accumulation: 1" in found["stages.dpo.batch_size"]


def test_ppo_runs_on_one_worker(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    changes = {"stages.ppo": PPO, "resources.workers": 2}
    assert faults(make_recipe, tmp_path / "1", changes) == {
        "stages.ppo.workers": "PPO runs on one worker, not on 2; set workers: 1 for this stage"
    }
    assert faults(make_recipe, tmp_path / "2", changes | {"stages.ppo": PPO | {"workers": 1}}) == {}


def test_one_worker_needs_no_ray(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    def spread(changes: dict[str, Any]) -> set[str]:
        recipe = load_recipe(make_recipe(tmp_path, changes=changes))
        return {name for name, stage in recipe.stages.items() if on_ray(recipe, stage)}

    assert spread({}) == set()
    assert spread({"resources.workers": 2}) == {"sft", "reward", "dpo"}
    assert spread({"resources.workers": 2, "stages.sft.workers": 1}) == {"reward", "dpo"}
    assert spread({"resources.address": "auto"}) == {"sft", "reward", "dpo"}
    assert spread({"stages.dpo.workers": 4}) == {"dpo"}


def test_a_client_address_is_refused(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"resources\.address: .* run this command as a Ray job"):
        load_recipe(make_recipe(tmp_path, changes={"resources.address": "ray://head:10001"}))


def test_only_how_many_workers_counts(make_recipe: MakeRecipe, tiny_model: Path, tmp_path: Path) -> None:
    """Not where they are, nor which setting says so; stages that do not train keep their keys."""

    def keys(number: int, changes: dict[str, Any]) -> list[str]:
        path = make_recipe(tmp_path / str(number), changes=changes)
        recipe, workspace = load_recipe(path), Workspace(tmp_path / "workspace")
        made = {"base": prepare_base(workspace, recipe.model)}
        made["sft"] = made["base"]
        data = resolve_data(recipe, path)
        return [make_job(name, recipe, made, data, workspace).key for name in ("sft", "responses")]

    one = keys(1, {})
    two = keys(2, {"resources.workers": 2})
    assert one[0] != two[0]
    assert one[1] == two[1]
    assert keys(3, {"stages.sft.workers": 2}) == two
    assert keys(4, {"resources.workers": 2, "resources.max_failures": 0, "resources.stall_seconds": 9}) == two
    assert keys(5, {"resources.address": "auto"}) == one
