"""Training stages on real Ray, two workers on this machine: the steps of one, whatever the batches."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alignment.errors import StageError

ROUNDING = 1e-4  # relative, of each point of a loss curve in float32: the order of sums alone differs
BEFORE = ("sft", "responses", "preferences")


def stage_of(tools: SimpleNamespace, kind: str) -> tuple[tuple[str, ...], dict[str, Any], int]:
    """What a stage starts from, its settings, and how many demonstrations there are."""
    stages: dict[str, tuple[tuple[str, ...], dict[str, Any], int]] = {
        # one more than fits: 11 demonstrations in batches of 10 leave one for two workers
        "sft": ((), {"stages.sft.batch_size": 10}, 11),
        "sft, one row": ((), {"stages.sft.batch_size": 2}, 1),
        "dpo": (BEFORE, {"stages.dpo.batch_size": 4}, 11),
        "reward": (BEFORE, {}, 11),
        "grpo": (("sft",), {"stages.grpo": {"kind": "grpo", **tools.GROUP}}, 11),
        "rloo": (("sft",), {"stages.rloo": {"kind": "rloo", **tools.GROUP}}, 11),
        "ppo": (("sft",), {"stages.ppo": tools.PPO}, 11),  # 6 answers in minibatches of 3: two rows and one
        # a worker has nothing to sample, score and learn from
        "ppo, one answer": (("sft",), {"stages.ppo": tools.PPO | {"episodes": 1, "minibatches": 1}}, 11),
    }
    return stages[kind]


KINDS = ("sft", "sft, one row", "dpo", "reward", "grpo", "rloo", "ppo", "ppo, one answer")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", KINDS)
def test_two_workers_take_the_steps_of_one(run: Any, tools: SimpleNamespace, kind: str) -> None:
    before, changes, rows = stage_of(tools, kind)
    stage = kind.split(",")[0]
    run.need(*before)
    one, alone = run(stage, f"one {kind}", changes, rows)
    two, together = run(stage, f"two {kind}", changes | {"resources.workers": 2}, rows)
    assert one.key != two.key
    names = ("policy_loss", "value_loss", "score", "kl", "kl_coefficient", "gradient_norm")
    for name in names if stage == "ppo" else ("loss",):
        alone_curve = tools.curve(one, name)
        assert len(alone_curve) > 2
        rounding = 10 * ROUNDING if stage == "ppo" else ROUNDING
        assert tools.curve(two, name) == pytest.approx(alone_curve, rel=rounding, abs=rounding / 10), name
    assert tools.norm(two) == pytest.approx(tools.norm(one), rel=ROUNDING)
    assert [(p.step, p.total) for p in together.steps] == [(p.step, p.total) for p in alone.steps]
    assert two.work_seconds > 0
    assert {path.name for path in Path(two.path).iterdir()} == {path.name for path in Path(one.path).iterdir()}
    assert two.tokens_trained >= one.tokens_trained  # the rows of an uneven batch are done more than once
    assert two.tokens_sampled == one.tokens_sampled


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["sft", "dpo", "reward", "grpo", "ppo"])
def test_parts_of_a_model_take_the_steps_of_the_whole(run: Any, tools: SimpleNamespace, kind: str) -> None:
    """Sharded, and then whole again in the same processes, which may have kept something of it."""
    before, changes, rows = stage_of(tools, kind)
    run.need(*before)
    one, _heard = run(kind, f"one {kind}", changes, rows)
    several = changes | {"resources.workers": 2}
    parts, heard = run(kind, f"parts {kind}", several | {"resources.sharding": "fsdp"}, rows)
    two, _heard = run(kind, f"two {kind}", several, rows)
    assert len({one.key, parts.key, two.key}) == 3
    loss = "policy_loss" if kind == "ppo" else "loss"
    for other in (parts, two):
        assert tools.curve(other, loss) == pytest.approx(tools.curve(one, loss), rel=ROUNDING, abs=ROUNDING / 10)
        assert tools.norm(other) == pytest.approx(tools.norm(one), rel=ROUNDING)
    assert heard.steps[-1].step == heard.steps[-1].total == len(tools.curve(one, loss))
    assert {path.name for path in Path(parts.path).iterdir()} == {path.name for path in Path(one.path).iterdir()}
    partial = [run.root / name / "partial" for name in (f"parts {kind}", f"two {kind}")]
    left = [path for folder in partial for path in folder.iterdir() if path.is_dir()]
    assert not left  # of either: only their locks stay


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_work_that_cannot_be_done_is_not_tried_again(run: Any) -> None:
    """The faults of a stage come back as they are from its workers."""
    with pytest.raises(StageError, match="no demonstration has an answer within max_length=1 tokens"):
        run("sft", "fails", {"stages.sft.max_length": 1, "resources.workers": 2})
