"""The score head is in float32 under any trunk, in training, on disk and when it answers."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from alignment.models.reward_model import load_reward_model, narrow_trunk, new_reward_model, score
from alignment.records import Artifact
from alignment.stage import StageContext


@pytest.fixture
def context(base: Artifact, make_context: Callable[..., StageContext], tmp_path: Path) -> StageContext:
    return make_context(tmp_path, "reward", {"base": base}, changes={"model.dtype": "bfloat16"})


def test_scores_have_more_than_eight_bits(context: StageContext, base: Artifact, tmp_path: Path) -> None:
    """Two hundred answers around one score: in bfloat16 a handful of values, each of many answers."""
    model, tokenizer = new_reward_model(base, base, context.run)
    with torch.no_grad():
        model.score.weight.copy_(torch.full_like(model.score.weight, 0.01).add_(torch.arange(48) * 1e-5))
    assert model.score.weight.dtype == torch.float32
    assert model.dtype == torch.bfloat16
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, 300, (12,), generator=generator).tolist() for _ in range(200)]
    scores = score(model, tokenizer, rows)
    assert len(set(scores)) >= 199
    narrow_trunk(model, torch.bfloat16)
    folder = tmp_path / "saved"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    assert load_file(folder / "model.safetensors")["score.weight"].dtype == torch.float32
    artifact = Artifact(name="reward", kind="reward_model", version=1, digest="0", path=str(folder), key="k")
    loaded, _ = load_reward_model(artifact, context.run)
    assert torch.equal(loaded.score.weight, model.score.weight)
    assert score(loaded, tokenizer, rows) == scores


def test_autocast_does_not_narrow_it(context: StageContext, base: Artifact) -> None:
    model, _ = new_reward_model(base, base, context.run, masters=True)
    hidden = torch.randn(4, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.score.weight.normal_(generator=torch.Generator().manual_seed(1))
        with torch.autocast("cpu", torch.bfloat16):
            scores = model.score(hidden)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, hidden @ model.score.weight.T)
