"""PPO's checkpoints under sharding: whole, and read by any number of workers, in parts or not."""

import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from alignment.records import Artifact
from alignment.stage import StageContext

ROUNDING = 2e-3  # relative, of each weight after two steps in float32
PPO = {
    "kind": "ppo", "model": "base", "episodes": 5, "epochs": 2, "batch_size": 2, "lora": None, "critic": "policy",
    "learning_rate": 1e-3, "critic_learning_rate": 1e-3, "warmup": 0.0, "schedule": "constant", "checkpoint_every": 1,
    "sampling": {"max_new_tokens": 6},
    "rewards": [{"kind": "length_penalty", "unit": "characters", "free": 4, "full": 14}],
}  # fmt: skip
MakeContext = Callable[..., StageContext]


@pytest.mark.slow
@pytest.mark.parametrize("first", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_checkpoint_of_ppo_is_whole_whoever_wrote_it(
    first: int, dtype: str, base: Artifact, make_context: MakeContext, tmp_path: Path,
    together: SimpleNamespace,
) -> None:  # fmt: skip
    """Two workers in parts go on with what one alone wrote, and the reverse; all is read without pickled code."""
    import_module(together.MODULES["ppo"])

    def contexts(folder: Path, workers: int, steps: int) -> list[StageContext]:
        parts = {"resources.workers": 2, "resources.sharding": "fsdp"} if workers > 1 else {}
        made = []
        for rank in range(workers):
            context = make_context(
                folder, "ppo", {"base": base}, settings=PPO | {"steps": steps}, changes=parts | {"model.dtype": dtype}
            )
            context.output = folder / f"scratch-{rank}" if rank else folder / "output"
            made.append(context)
        return made

    def newest(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        path = folder / "checkpoints" / "step-000002"
        return load_file(path / "weights.safetensors"), torch.load(path / "optimizer.pt", weights_only=True)

    together.in_processes(contexts(tmp_path / "other", first, 1))
    shutil.copytree(tmp_path / "other" / "checkpoints", tmp_path / "here" / "checkpoints")
    together.in_processes(contexts(tmp_path / "here", 3 - first, 2))
    together.in_processes(contexts(tmp_path / "whole", 1, 2))
    (weights, optimizer), (expected, moments) = newest(tmp_path / "here"), newest(tmp_path / "whole")
    assert [(n, w.shape, w.dtype) for n, w in weights.items()] == [(n, w.shape, w.dtype) for n, w in expected.items()]
    assert len(optimizer["masters"]) == len(moments["masters"]) == (len(weights) - 2 if dtype == "bfloat16" else 0)
    assert all(master.dtype == torch.float32 for master in optimizer["masters"])
    held = [{name: value.shape for name, value in one.items()} for one in optimizer["optimizer"]["state"].values()]
    assert held == [{n: value.shape for n, value in one.items()} for one in moments["optimizer"]["state"].values()]
    assert [one["step"] for one in optimizer["optimizer"]["state"].values()] == [4.0] * len(weights)
    if dtype == "float32":  # else the second step's answers are others, by a token
        for name, weight in expected.items():
            difference = float((weight.double() - weights[name].double()).norm())
            assert difference <= ROUNDING * float(weight.double().norm()) + 1e-6, (name, difference)
