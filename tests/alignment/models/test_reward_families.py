"""Reward models of every family: the score is read at the answer's last token, whatever stands for padding."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alignment.models.families.head import trunk_of
from alignment.models.reward_model import load_reward_model, new_reward_model, score
from alignment.recipe.run_settings import RunSettings
from alignment.records import Artifact
from alignment.stage import StageContext
from tests.tiny_families import build

FAMILIES = ["gpt2", "falcon", "opt", "olmoe", "cohere", "granite", "glm4_moe", "llama4", "mamba", "mixtral"]


@pytest.fixture
def context(base: Artifact, make_context: Callable[..., StageContext], tmp_path: Path) -> StageContext:
    return make_context(tmp_path / "run", "reward", {"base": base})


@pytest.mark.parametrize("pad", ["<pad>", None])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_last_token_is_scored(
    name: str, pad: str | None, context: StageContext, make_model: Any, tmp_path: Path
) -> None:
    """Expected: the head's product with the trunk's state at the end of each text, computed by itself."""
    folder = make_model(tmp_path / "model", pad=pad)
    model = build(name, vocab_size=400)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    model.save_pretrained(folder)
    artifact = Artifact(name="base", kind="model", version=1, digest="0" * 64, path=str(folder), key="base")
    run: RunSettings = context.run
    reward, tokenizer = new_reward_model(artifact, artifact, run)
    with torch.no_grad():
        torch.nn.init.normal_(reward.score.weight, generator=torch.Generator().manual_seed(0))
    end = tokenizer.eos_token_id
    texts = [[5, 6, 7, end], [8, 9, end], [10, 11, 12, 13, end], [14, 15]]
    expected = []
    for ids in texts:
        with torch.no_grad():
            states = trunk_of(model)(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state
        expected.append(float(states[0, -1].float() @ reward.score.weight[0]))
    assert score(reward, tokenizer, texts) == pytest.approx(expected, rel=1e-4, abs=1e-4)
    reward.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    again, tokenizer = load_reward_model(artifact.model_copy(update={"path": str(tmp_path / "saved")}), run)
    assert score(again, tokenizer, texts) == pytest.approx(expected, rel=1e-4, abs=1e-4)
