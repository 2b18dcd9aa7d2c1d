"""PPO whose answers are drawn by rollout workers apart from the learners, on real Ray."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROUNDING = 1e-3  # relative: the workers' batches are others, so sums are
GAP = 1e-4  # nats per token between sampling and training, in float32 and with the same weights


def ppo(tools: SimpleNamespace, **changes: Any) -> dict[str, Any]:
    return {"stages.ppo": tools.PPO | changes}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "workers",
    [{"resources.workers": 1}, {"resources.workers": 2}, {"resources.workers": 2, "resources.sharding": "fsdp"}],
)
def test_rollouts_use_the_new_weights_after_each_update(
    run: Any, tools: SimpleNamespace, workers: dict[str, Any]
) -> None:
    """What the rollout workers say of their tokens' likelihood is what the learner says, at each of the steps.

    The policy moves far in each step, so weights of the step before would be off by a hundred times as much.
    """
    run.need("sft")
    alone, _heard = run("ppo", "alone", ppo(tools))
    apart, _heard = run("ppo", "apart", ppo(tools, rollout_workers=2) | workers)
    assert all(gap < GAP for gap in tools.curve(apart, "sampling_gap"))
    assert max(tools.curve(apart, "approximate_kl")) > 100 * GAP  # an update's own distance
    for name in ("score", "kl", "policy_loss"):
        assert tools.curve(apart, name) == pytest.approx(tools.curve(alone, name), rel=ROUNDING, abs=ROUNDING), name
    assert tools.norm(apart) == pytest.approx(tools.norm(alone), rel=ROUNDING)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_rollout_worker_changes_nothing(run: Any, tools: SimpleNamespace) -> None:
    run.need("sft")
    changes = ppo(tools, rollout_workers=2, steps=30)
    undisturbed, _heard = run("ppo", "undisturbed", changes)
    root = run.root / "killed"
    killer = tools.Killer(root, "rollout-1", lambda: any(root.glob("partial/*/checkpoints/step-*")))
    killed, heard = run("ppo", "killed", changes)
    assert killer.hit is not None
    assert [progress.step for progress in heard.steps] == list(range(1, 31))  # no step was done again
    name = "adapter_model.safetensors"
    assert (Path(killed.path) / name).read_bytes() == (Path(undisturbed.path) / name).read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_answers_drawn_ahead_survive_the_learners_death(run: Any, tools: SimpleNamespace) -> None:
    run.need("sft")
    changes = ppo(tools, rollout_workers=1, max_staleness=1, importance_cap=2.0, steps=30)
    undisturbed, _heard = run("ppo", "undisturbed", changes)
    gaps = tools.curve(undisturbed, "sampling_gap")
    assert gaps[0] < GAP < gaps[1]  # the first step's answers are its own, later ones are a step old
    root = run.root / "dead"
    killer = tools.Killer(root, "0", lambda: any(root.glob("partial/*/checkpoints/step-*")))
    killed, _heard = run("ppo", "dead", changes)
    assert killer.hit is not None
    name = "adapter_model.safetensors"
    assert (Path(killed.path) / name).read_bytes() == (Path(undisturbed.path) / name).read_bytes()
