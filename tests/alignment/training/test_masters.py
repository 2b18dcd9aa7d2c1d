"""All weights in bfloat16 recipes: twenty steps follow float32's loss curve, and the artifact is in bfloat16."""

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

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
        result = import_module(f"alignment.stages.{stage}").run(context.recipe.stages[stage], context)
        return [value for _step, value in result.curves[metric]], context.output

    return train


@pytest.mark.parametrize("stage", SETTINGS)
def test_bfloat16_follows_float32(stage: str, curve: Callable[..., tuple[list[float], Path]]) -> None:
    wide, _ = curve(stage, "float32", SETTINGS[stage])
    narrow, output = curve(stage, "bfloat16", SETTINGS[stage])
    assert len(wide) == 20
    assert wide[-1] < wide[0] * (0.9 if stage != "sft" else 0.97)
    assert narrow == pytest.approx(wide, rel=0.02)
    weights = load_file(output / "model.safetensors")
    wide_names = {name for name, weight in weights.items() if weight.dtype == torch.float32}
    assert wide_names == ({"score.weight"} if stage == "reward" else set())
    assert json.loads((output / "config.json").read_text())["dtype"] == "bfloat16"


GRPO: dict[str, Any] = {
    "kind": "grpo", "model": "base", "lora": None, "steps": 20, "episodes": 64, "per_prompt": 16, "batch_size": 32,
    "sampling": {"max_new_tokens": 6}, "learning_rate": 1e-4, "schedule": "constant", "beta": 0.0,
    "checkpoint_every": 20,
    "scale_rewards": "none",
    "rewards": [{"kind": "length_penalty", "unit": "characters", "free": 4, "full": 30}],
}  # fmt: skip


@pytest.mark.slow
def test_grpo_in_bfloat16_moves_as_far_as_in_float32(
    curve: Callable[..., tuple[list[float], Path]], tiny_model: Path
) -> None:
    """Its loss is about 0 at each step, and rounding makes other answers (4 % here): compared is
    how far the weights have come, which in plain bfloat16 was 57 % of the way."""
    start = load_file(tiny_model / "model.safetensors")
    names = [name for name, _weight in AutoModelForCausalLM.from_pretrained(tiny_model).named_parameters()]

    def distance(dtype: str) -> float:
        rewards, output = curve("grpo", dtype, GRPO, "reward")
        assert len(rewards) == 20
        checkpoint = output.parent / "checkpoints" / "step-000020"
        kept = load_file(checkpoint / "weights.safetensors")
        weights = {name.removeprefix("policy."): weight for name, weight in kept.items()}
        masters = torch.load(checkpoint / "optimizer.pt", weights_only=True)["masters"]  # not rounded yet
        weights |= dict(zip(names, masters, strict=False))
        return sum(float((weights[name].float() - start[name]).square().sum()) for name in names) ** 0.5

    wide, narrow = distance("float32"), distance("bfloat16")
    assert narrow == pytest.approx(wide, rel=0.1)
