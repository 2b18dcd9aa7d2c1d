"""A second node on this machine, lost or taken away while a stage trains on both."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

LONG = {"stages.sft.epochs": 60, "stages.sft.batch_size": 10, "resources.address": "auto", "resources.workers": 2}
MANY = {"learning_rate": 1e-4, "steps": 60, "checkpoint_every": 5}
KINDS: dict[str, dict[str, Any]] = {  # long enough for a node to be missed
    "dpo": {"epochs": 30, "batch_size": 4, "checkpoint_every": 5},
    "reward": {"epochs": 30, "batch_size": 4, "checkpoint_every": 5},
    "grpo": {"kind": "grpo"},
    "ppo": {},
}


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A Ray of one node with room for one worker, which others may join."""
    from ray.cluster_utils import Cluster

    from flows.cluster import stop
    from flows.cluster.ray_session import SETTINGS

    stop()
    os.environ.update(SETTINGS | {"RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1"})
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    os.environ["RAY_ADDRESS"] = cluster.address
    yield cluster
    del os.environ["RAY_ADDRESS"]
    stop()
    cluster.shutdown()


def checkpoints(root: Path) -> list[int]:
    found = [path.parent for path in root.glob("partial/*/checkpoints/checkpoint-*/complete")]
    found += root.glob("partial/*/checkpoints/step-*")  # PPO's
    return sorted(int(path.name.split("-")[1]) for path in found)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_lost_node_leaves_the_stage_to_the_other(run: Any, tools: SimpleNamespace, cluster: Any) -> None:
    """With min_workers the run goes on with the worker that is left, from the last checkpoint, to the same loss."""
    node = cluster.add_node(num_cpus=1)
    changes = LONG | {"resources.min_workers": 1, "stages.sft.checkpoint_every": 10}
    root = run.root / "lost"
    killer = tools.Killer(root, "1", lambda: bool(checkpoints(root)), what=0)  # only to know when it trains

    def lose() -> None:
        killer.thread.join()
        cluster.remove_node(node, allow_graceful=False)

    thread = threading.Thread(target=lose, daemon=True)
    thread.start()
    artifact, heard = run("sft", "lost", changes)
    thread.join()
    steps = [progress.step for progress in heard.steps]
    assert killer.hit is not None
    assert steps.count(1) == 1
    assert steps[-1] == 120
    alone, _heard = run("sft", "alone", {"stages.sft.epochs": 60, "stages.sft.batch_size": 10})
    assert tools.curve(artifact) == pytest.approx(tools.curve(alone), rel=1e-3, abs=1e-4)
    assert tools.norm(artifact) == pytest.approx(tools.norm(alone), rel=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("stage", KINDS)
def test_every_kind_of_training_goes_on_without_a_lost_node(
    run: Any, tools: SimpleNamespace, cluster: Any, stage: str
) -> None:
    """Each step is done once. One worker sums in another order than two, so of what is drawn the size alone is held."""
    run.need("sft", "responses", "preferences")
    settings = KINDS[stage]
    if stage in ("grpo", "ppo"):
        settings = {**(tools.GROUP if stage == "grpo" else tools.PPO), **settings, **MANY}
    whole = {"grpo": {"stages.grpo": settings}, "ppo": {"stages.ppo": settings}}
    changes = whole.get(stage, {f"stages.{stage}.{name}": value for name, value in settings.items()})
    node = cluster.add_node(num_cpus=1)
    root = run.root / f"lost-{stage}"
    killer = tools.Killer(root, "1", lambda: bool(checkpoints(root)), what=0)

    def lose() -> None:
        killer.thread.join()
        cluster.remove_node(node, allow_graceful=False)

    thread = threading.Thread(target=lose, daemon=True)
    thread.start()
    where = {"resources.address": "auto", "resources.workers": 2, "resources.min_workers": 1}
    artifact, heard = run(stage, root.name, changes | where)
    thread.join()
    alone, alone_heard = run(stage, f"alone-{stage}", changes)
    assert killer.hit is not None
    assert heard.steps[-1].step == alone_heard.steps[-1].step
    assert [progress.step for progress in heard.steps].count(1) == 1
    name = "policy_loss" if stage == "ppo" else "loss"
    assert len(tools.curve(artifact, name)) == len(tools.curve(alone, name))
    if stage in ("dpo", "reward"):
        assert tools.curve(artifact) == pytest.approx(tools.curve(alone), rel=1e-2, abs=1e-3)
    assert tools.norm(artifact) == pytest.approx(tools.norm(alone), rel=1e-2)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_lost_node_leaves_the_answers_to_the_other(run: Any, tools: SimpleNamespace, cluster: Any) -> None:
    """An actor without a node is started nowhere: the piece that it had is drawn by the one that is left."""
    run.need("sft")
    settings = {"per_prompt": 4, "batch_size": 2, "sampling": {"max_new_tokens": 60}}
    changes = {f"stages.responses.{name}": value for name, value in settings.items()}
    alone, _heard = run("responses", "drawn-alone", changes)
    node = cluster.add_node(num_cpus=1)
    root = run.root / "drawn"

    def started() -> bool:
        return len(tools.processes_of(root)) == 2 and bool(list(root.glob("partial/*/checkpoints/block-*.jsonl")))

    killer = tools.Killer(root, "1", started, what=0)  # only to know when both are at work

    def lose() -> None:
        killer.thread.join()
        cluster.remove_node(node, allow_graceful=False)

    thread = threading.Thread(target=lose, daemon=True)
    thread.start()
    both, _heard = run("responses", "drawn", changes | {"resources.address": "auto", "resources.workers": 2})
    thread.join()
    assert killer.hit is not None
    assert both.digest == alone.digest


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sigterm_saves_a_checkpoint_before_the_node_goes(run: Any, tools: SimpleNamespace, cluster: Any) -> None:
    """A node that is told to end (a preemption) has a checkpoint written that nobody had planned."""
    command = [str(Path(sys.executable).with_name("ray")), "start", "--block", f"--address={cluster.address}"]
    environment = os.environ | {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "30"}
    node = subprocess.Popen([*command, "--num-cpus=1"], env=environment, stdout=subprocess.DEVNULL)
    root = run.root / "sigterm"
    told: list[float] = []

    def tell(_signal: int = 0) -> bool:
        trained = list(root.glob("partial/*/ray/progress.jsonl"))
        if trained and len(trained[0].read_bytes().splitlines()) > 5 and not told:
            told.append(time.time())
            node.send_signal(signal.SIGTERM)
        return bool(told) and bool(checkpoints(root))

    saved = tools.Killer(root, "0", tell, what=0)
    try:
        artifact, heard = run("sft", "sigterm", LONG | {
            "resources.min_workers": 1, "stages.sft.checkpoint_every": 1000, "stages.sft.epochs": 400,
        })  # fmt: skip
    finally:
        node.kill()
    assert told
    assert saved.hit is not None  # long before the thousandth step
    assert heard.steps[-1].step == 800
    assert [progress.step for progress in heard.steps].count(1) == 1
    assert len(tools.curve(artifact)) == 800
