"""All weights in bfloat16 recipes: twenty steps follow float32's loss curve, and the artifact is in bfloat16."""

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from alignment.records import Artifact
from alignment.stage import StageContext

MakeContext = Callable[..., StageContext]
# A weight of 0.1 has its bfloat16 neighbours 5e-4 away: updates of this size round away.
STEPS = {"lora": None, "model": "base", "epochs": 20, "learning_rate": 1e-4, "checkpoint_every": 100}
SETTINGS: dict[str, dict[str, Any]] = {
    "sft": STEPS | {"batch_size": 12},
    "dpo": STEPS | {"batch_size": 24, "beta": 0.5},
    "reward": STEPS | {"batch_size": 24, "learning_rate": 3e-4},
}
MODULES = {"grpo": "grpo", "sft": "sft", "dpo": "dpo", "reward": "reward"}


@pytest.fixture(scope="module")
def inputs(base: Artifact, preferences: Artifact) -> dict[str, Artifact]:
    return {"base": base, "preferences": preferences}


@pytest.fixture
def curve(
    inputs: dict[str, Artifact], make_context: MakeContext, tmp_path: Path
) -> Callable[..., tuple[list[float], Path]]:
    """Trains a stage in a number format: its curve of a metric, and its output."""

    def train(stage: str, dtype: str, settings: dict[str, Any], metric: str = "loss") -> tuple[list[float], Path]:
        context = make_context(tmp_path / dtype, stage, inputs, settings=settings, changes={"model.dtype": dtype})
        result = import_module(f"alignment.stages.{MODULES[stage]}").run(context.recipe.stages[stage], context)
        return [value for _step, value in result.curves[metric]], context.output

    return train


@pytest.mark.parametrize("stage", SETTINGS)
def test_bfloat16_follows_float32(stage: str, curve: Callable[..., tuple[list[float], Path]]) -> None:
    wide, _ = curve(stage, "float32", SETTINGS[stage])
    narrow, output = curve(stage, "bfloat16", SETTINGS[stage])
    assert len(wide) == 20
    print(stage, wide[0], wide[-1], max(abs(n / w - 1) for n, w in zip(narrow, wide)))
    assert wide[-1] < wide[0] * (0.9 if stage != "sft" else 0.97)
    assert narrow == pytest.approx(wide, rel=0.02)
    weights = load_file(output / "model.safetensors")
    wide_names = {name for name, weight in weights.items() if weight.dtype == torch.float32}
    assert wide_names == ({"score.weight"} if stage == "reward" else set())
    assert json.loads((output / "config.json").read_text())["dtype"] == "bfloat16"
