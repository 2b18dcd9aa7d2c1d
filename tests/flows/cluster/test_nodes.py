"""A second node on this machine, lost or taken away while a stage trains on both."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

LONG = {"stages.sft.epochs": 60, "stages.sft.batch_size": 10, "resources.address": "auto", "resources.workers": 2}


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A Ray of one node with room for one worker, which others may join."""
    from ray.cluster_utils import Cluster

    from flows.cluster import stop
    from flows.cluster.session import SETTINGS

    stop()
    os.environ.update(SETTINGS | {"RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1"})
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    os.environ["RAY_ADDRESS"] = cluster.address
    yield cluster
    del os.environ["RAY_ADDRESS"]
    stop()
    cluster.shutdown()


def checkpoints(root: Path) -> list[int]:
    found = root.glob("partial/*/checkpoints/checkpoint-*/complete")
    return sorted(int(path.parent.name.split("-")[1]) for path in found)


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

    import threading

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
