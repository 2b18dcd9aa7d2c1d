"""Training stages in two processes that share each batch take the steps of one: every trainer, without Ray.

The processes are forks of the test, joined by gloo as Ray Train joins its workers; tests/flows/cluster does the
same on Ray. Rounding is stated there.
"""

import json
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alignment.records import Artifact
from alignment.stage import StageContext

ROUNDING = 1e-4
REWARDS = [{"kind": "length_penalty", "unit": "characters", "free": 4, "full": 14}]
GROUP = {
    "model": "sft", "steps": 3, "episodes": 8, "per_prompt": 4, "batch_size": 4, "beta": 0.05, "learning_rate": 1e-2,
    "sampling": {"max_new_tokens": 6}, "lora": {"rank": 4, "alpha": 8}, "warmup": 0.0, "rewards": REWARDS,
}  # fmt: skip
PPO = {  # 7 answers in one minibatch: four rows and three
    "kind": "ppo", "model": "sft", "steps": 3, "episodes": 7, "epochs": 2, "batch_size": 2, "learning_rate": 1e-2,
    "sampling": {"max_new_tokens": 6}, "lora": {"rank": 4, "alpha": 8}, "warmup": 0.0, "rewards": REWARDS,
    "raters": {"rubric": "rubric.yaml", "noise": 0.0}, "watch_every": 2, "watch_prompts": 3, "checkpoint_every": 1,
}  # fmt: skip
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "sft": {"batch_size": 8, "epochs": 2},  # 11 demonstrations: 8 and 3
    "dpo": {"batch_size": 8, "epochs": 2, "snapshot_every": 2},  # 24 pairs
    "reward": {"batch_size": 10, "epochs": 2},  # an odd rest
    "pair_classifier": {
        "kind": "pair_classifier",
        "preferences": "preferences",
        "batch_size": 8,
        "max_length": 200,
        "gradient_accumulation": 2,
        "lora": {"rank": 4, "alpha": 8},
    },
    "grpo": {"kind": "grpo", **GROUP},
    "rloo": {"kind": "rloo", **GROUP},
    "ppo": PPO,
}
MakeContext = Callable[..., StageContext]


@pytest.mark.slow
@pytest.mark.parametrize("stage", SETTINGS)
def test_two_processes_take_the_steps_of_one(
    stage: str,
    base: Artifact,
    sft: Artifact,
    preferences: Artifact,
    make_context: MakeContext,
    tmp_path: Path,
    together: SimpleNamespace,
) -> None:
    import_module(together.MODULES[stage])  # once, before the forks
    inputs = {"base": base, "sft": sft, "preferences": preferences}

    def contexts(folder: str, workers: int) -> list[StageContext]:
        made = []
        for rank in range(workers):
            context = make_context(tmp_path / folder, stage, inputs, settings=SETTINGS[stage])
            lines = context.data["demonstrations"].read_text().splitlines(keepends=True)
            context.data["demonstrations"].write_text("".join(lines[:11]))
            if rank:
                context.output = tmp_path / folder / f"scratch-{rank}"
            made.append(context)
        return made

    together.in_processes(contexts("one", 1))
    together.in_processes(contexts("two", 2))
    one, two = (json.loads((tmp_path / name / "output" / "curves.json").read_text()) for name in ("one", "two"))
    assert set(one) == set(two)
    loss = "policy_loss" if stage == "ppo" else "loss"
    assert len(one[loss]) >= 3
    for name in one:
        if name == "rewards/accuracies":  # where chosen and rejected are equal, rounding alone says
            told = {step for step, margin in one["rewards/margins"] if abs(margin) > ROUNDING}
            assert [row for row in two[name] if row[0] in told] == [row for row in one[name] if row[0] in told]
        elif not name.startswith("entropy") and "second" not in name:
            assert dict(two[name]) == pytest.approx(dict(one[name]), rel=ROUNDING * 10, abs=ROUNDING), name
    assert dict(two[loss]) == pytest.approx(dict(one[loss]), rel=ROUNDING, abs=ROUNDING / 10)
    assert together.norm(tmp_path / "two") == pytest.approx(together.norm(tmp_path / "one"), rel=ROUNDING)
    files = [{path.name for path in (tmp_path / name / "output").rglob("*")} for name in ("one", "two")]
    assert files[0] == files[1]
    assert not (tmp_path / "two" / "scratch-1").exists()  # rank 0 alone writes


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_a_killed_worker_changes_nothing(
    stage: str,
    base: Artifact,
    sft: Artifact,
    preferences: Artifact,
    make_context: MakeContext,
    tmp_path: Path,
    together: SimpleNamespace,
) -> None:
    import_module(together.MODULES[stage])
    inputs = {"base": base, "sft": sft, "preferences": preferences}
    settings = {"batch_size": 8, "epochs": 8, "checkpoint_every": 2}

    def make(folder: Path) -> StageContext:
        return make_context(folder, stage, inputs, settings=settings)

    killed, whole = together.with_a_death_and_without(make, tmp_path)
    assert killed == whole
