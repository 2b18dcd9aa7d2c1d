"""Workers that are killed, or stand still, during each kind of stage on real Ray: it ends well, or says why not."""

import contextlib
import logging
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alignment.errors import StageError

BEFORE = ("sft", "responses", "preferences")
TWO = {"resources.workers": 2}
STALL = 60  # seconds: a busy machine takes most of them until the workers have imported what they need


def long_stage(tools: SimpleNamespace, kind: str) -> tuple[tuple[str, ...], dict[str, Any], str]:
    """What a stage starts from, settings that make it last, and the first whole checkpoint that it leaves."""
    group = tools.GROUP | {"steps": 30, "checkpoint_every": 2}
    trl = "checkpoint-*/complete"
    stages: dict[str, tuple[tuple[str, ...], dict[str, Any], str]] = {
        "sft": ((), {"stages.sft": {"epochs": 60, "batch_size": 10, "checkpoint_every": 10}}, trl),
        "dpo": (BEFORE, {"stages.dpo": {"epochs": 20, "checkpoint_every": 4}}, trl),
        "reward": (BEFORE, {"stages.reward": {"epochs": 20, "checkpoint_every": 4}}, trl),
        "grpo": (("sft",), {"stages.grpo": {"kind": "grpo", **group}}, "step-*"),
        "rloo": (("sft",), {"stages.rloo": {"kind": "rloo", **group}}, "step-*"),
        "ppo": (("sft",), {"stages.ppo": tools.PPO | {"steps": 30}}, "step-*"),
    }
    before, settings, checkpoint = stages[kind.split(",")[0]]
    changes: dict[str, Any] = {"resources.sharding": "fsdp"} if "sharded" in kind else {}
    for name, value in settings.items():
        known = name in ("stages.sft", "stages.dpo", "stages.reward")
        changes |= {f"{name}.{key}": one for key, one in value.items()} if known else {name: value}
    return before, changes | TWO, checkpoint


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "kind", ["sft", "dpo", "reward", "grpo", "rloo", "ppo", "sft, sharded", "dpo, sharded", "ppo, sharded"]
)
def test_a_killed_worker_changes_nothing(run: Any, tools: SimpleNamespace, kind: str) -> None:
    before, changes, checkpoint = long_stage(tools, kind)
    run.need(*before)
    stage = kind.split(",")[0]
    undisturbed, _heard = run(stage, "undisturbed", changes)
    root = run.root / "killed"
    killer = tools.Killer(root, "1", lambda: any(root.glob(f"partial/*/checkpoints/{checkpoint}")))
    artifact, heard = run(stage, "killed", changes)
    assert killer.hit is not None
    steps = [progress.step for progress in heard.steps]
    assert steps.count(1) == 1  # it went on from a checkpoint, not from the start
    assert steps[-1] == heard.steps[-1].total
    [weights] = Path(artifact.path).glob("*model.safetensors")
    assert weights.read_bytes() == (Path(undisturbed.path) / weights.name).read_bytes()
    if stage != "ppo":  # whose curves tell the time
        assert artifact.digest == undisturbed.digest  # every file, to the bit


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hang_ends_with_the_stacks_of_all_workers(
    run: Any, tools: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    _before, changes, checkpoint = long_stage(tools, "sft")
    root = run.root / "hang"
    stopped = tools.Killer(
        root, "1", lambda: any(root.glob(f"partial/*/checkpoints/{checkpoint}")), what=signal.SIGSTOP
    )
    words = rf"no step in {STALL} s .*stacks are in"
    try:
        with caplog.at_level(logging.ERROR), pytest.raises(StageError, match=words):
            run("sft", "hang", changes | {"resources.stall_seconds": STALL})
    finally:
        if stopped.hit is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(stopped.hit, signal.SIGCONT)
    assert stopped.hit is not None
    processes = tools.processes_of(root)
    assert set(processes) == {"0", "1"}
    for process in processes.values():
        assert f"process {process}:\n" in caplog.text
    assert "all_reduce" in caplog.text or "training_step" in caplog.text  # where rank 0 waits
    [kept] = root.glob("partial/*/stacks.txt")
    assert kept.read_text().strip() in caplog.text
