"""A trainer that is told to end saves the step that it is at and ends there; run again, it makes the same bits."""

import json
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from alignment.durable_files import folder_digest
from alignment.records import Artifact
from alignment.stage import Progress, StageContext
from alignment.training.checkpoints import COMPLETE

MakeContext = Callable[..., StageContext]
REWARDS = [{"kind": "length_penalty", "unit": "characters", "free": 4, "full": 14}]
RL = {
    "model": "sft", "steps": 5, "episodes": 8, "batch_size": 4, "learning_rate": 1e-2, "checkpoint_every": 1000,
    "sampling": {"max_new_tokens": 6}, "lora": {"rank": 4, "alpha": 8}, "rewards": REWARDS,
}  # fmt: skip
STAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("alignment.stages.sft", {}),
    "ppo": ("alignment.stages.ppo", {"kind": "ppo", "critic_learning_rate": 1e-2, "epochs": 2, "minibatches": 2} | RL),
    "grpo": ("alignment.stages.grpo", {"kind": "grpo", "per_prompt": 4, "epochs": 2, "beta": 0.05} | RL),
}
AT = 3  # the step after which it is told


class Ended(BaseException):
    """What ends a run that was told to end."""


def attempt(
    make_context: MakeContext, folder: Path, stage: str, inputs: dict[str, Artifact], tell: bool
) -> tuple[Any, list[int]]:
    """A stage's result (None where it ended early) and the steps that it reported."""
    module, settings = STAGES[stage]
    steps: list[int] = []

    def report(progress: Progress) -> None:
        steps.append(progress.step)

    changes = {f"stages.{stage}": settings} if settings else {"stages.sft.checkpoint_every": 1000}
    shutil.rmtree(folder / "output", ignore_errors=True)
    context = make_context(folder, stage, inputs, changes=changes, report=report)
    looked = 0

    def told() -> bool:
        nonlocal looked
        looked += 1
        return tell and looked >= AT

    def saved() -> None:
        if tell:
            raise Ended

    context.preempted, context.saved = told, saved
    try:
        return import_module(module).run(context.recipe.stages[stage], context), steps
    except Ended:
        return None, steps


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_the_step_is_saved_and_the_next_run_goes_on(
    make_context: MakeContext, base: Artifact, sft: Artifact, tmp_path: Path, stage: str
) -> None:
    inputs = {"base": base} | ({"sft": sft} if stage != "sft" else {})
    whole, _steps = attempt(make_context, tmp_path / "whole", stage, inputs, tell=False)
    folder = tmp_path / "told"
    assert attempt(make_context, folder, stage, inputs, tell=True)[0] is None
    found = [path.parent for path in folder.glob(f"checkpoints/checkpoint-*/{COMPLETE}")]
    found += folder.glob("checkpoints/step-*")
    assert len(found) == 1
    state = json.loads(next(found[0].glob("*state.json")).read_text())
    done = int(found[0].name.split("-")[1])
    if stage != "sft":
        assert len(state["state"]["history"]) == done == AT
    else:
        assert state["global_step"] == max(row["step"] for row in state["log_history"]) == done
    again, steps = attempt(make_context, folder, stage, inputs, tell=False)
    assert steps[0] > done
    assert (again.metrics.keys(), again.tokens_trained) == (whole.metrics.keys(), whole.tokens_trained)
    weights = "adapter_model.safetensors"
    assert (folder / "output" / weights).read_bytes() == (tmp_path / "whole" / "output" / weights).read_bytes()
    if stage != "ppo":  # whose curves hold seconds
        assert folder_digest(folder / "output") == folder_digest(tmp_path / "whole" / "output")
