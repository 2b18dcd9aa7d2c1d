"""An encoder's training that dies goes on, and two processes take the steps of one, whole or sharded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alignment.durable_files import folder_digest
from alignment.records import Artifact
from alignment.stage import Progress, StageContext
from alignment.stages.reward import run
from tests.tiny_encoders import write_encoder

MakeContext = Callable[..., StageContext]
SETTINGS = {"model": "base", "epochs": 2, "batch_size": 4, "checkpoint_every": 2, "max_length": 96}


class Died(BaseException):
    """Ends a stage in the middle."""


@pytest.mark.parametrize("lora", [{"rank": 4, "alpha": 8}, pytest.param(None, marks=pytest.mark.slow)])
def test_a_death_changes_nothing(
    lora: Any, base: Artifact, preferences: Artifact, make_context: MakeContext, tmp_path: Path
) -> None:
    folder = write_encoder(tmp_path / "encoder", "roberta")
    settings = SETTINGS | {"encoder": {"folder": str(folder)}, "lora": lora}
    changes = {"model.dtype": "bfloat16"}

    def attempt(where: Path, die_at: int | None = None) -> tuple[Any, list[int]]:
        steps: list[int] = []

        def report(progress: Progress) -> None:
            steps.append(progress.step)
            if progress.step == die_at:
                raise Died

        shutil.rmtree(where / "output", ignore_errors=True)
        inputs = {"base": base, "preferences": preferences}
        context = make_context(where, "reward", inputs, settings=settings, changes=changes, report=report)
        context.data = {**context.data, "encoder": folder}
        try:
            return run(context.recipe.stages["reward"], context), steps  # type: ignore[attr-defined]
        except Died:
            return None, steps

    expected, _steps = attempt(tmp_path / "whole")
    assert attempt(tmp_path / "died", die_at=3)[1] == [1, 2, 3]
    result, steps = attempt(tmp_path / "died")
    assert steps[0] == 3
    assert folder_digest(tmp_path / "died" / "output") == folder_digest(tmp_path / "whole" / "output")
    assert result.metrics == expected.metrics


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["reward", "pair_classifier", "sharded", "sharded, narrow", "sharded, all weights"])
def test_two_processes_take_the_steps_of_one(
    kind: str,
    base: Artifact,
    preferences: Artifact,
    make_context: MakeContext,
    tmp_path: Path,
    together: SimpleNamespace,
) -> None:
    folder = write_encoder(tmp_path / "encoder", "bert")
    stage = "pair_classifier" if kind == "pair_classifier" else "reward"
    settings = SETTINGS | {"kind": stage, "encoder": {"folder": str(folder)}, "preferences": "preferences"}
    settings |= {"batch_size": 10, "lora": None if kind.endswith("weights") else {"rank": 4, "alpha": 8}}

    def contexts(name: str, workers: int) -> list[StageContext]:
        made = []
        for rank in range(workers):
            sharding = "fsdp" if kind.startswith("sharded") and workers > 1 else "none"
            dtype = "bfloat16" if kind.endswith("narrow") else "float32"
            changes = {"resources.sharding": sharding, "model.dtype": dtype, f"stages.{stage}": settings}
            context = make_context(tmp_path / name, stage, {"base": base, "preferences": preferences}, changes=changes)
            context.data = {**context.data, "encoder": folder}
            if rank:
                context.output = tmp_path / name / f"scratch-{rank}"
            made.append(context)
        return made

    together.in_processes(contexts("one", 1))
    together.in_processes(contexts("two", 2))
    one, two = (json.loads((tmp_path / name / "output" / "curves.json").read_text()) for name in ("one", "two"))
    assert len(one["loss"]) >= 3
    rounding = 2e-2 if kind.endswith("narrow") else 1e-4
    assert dict(two["loss"]) == pytest.approx(dict(one["loss"]), rel=rounding, abs=rounding / 10)
    assert together.norm(tmp_path / "two") == pytest.approx(together.norm(tmp_path / "one"), rel=rounding)
