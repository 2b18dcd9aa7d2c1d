"""Rotary positions that depend on the batch: what they do, and where training refuses them."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from alignment.errors import StageError
from alignment.models.families import check_rope, independent_length

LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 16,
    "short_factor": [1.0] * 4, "long_factor": [8.0] * 4, "factor": 4.0,
}  # fmt: skip


def config(rope: dict[str, Any] | None) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, rope_parameters=rope, initializer_range=0.3,
    )  # fmt: skip


def test_a_long_row_changes_the_others_beyond_the_limit_and_not_within() -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(LONGROPE)).eval()
    limit = independent_length(model.config)
    assert limit == 16
    short = torch.arange(8)

    def beside(length: int) -> torch.Tensor:
        ids, mask = torch.zeros(2, length, dtype=torch.long), torch.ones(2, length, dtype=torch.long)
        ids[0, :8], mask[0, 8:] = short, 0
        with torch.no_grad():
            logits: torch.Tensor = model(ids, attention_mask=mask).logits[0, :8]
        return logits

    assert torch.allclose(beside(8), beside(limit), atol=1e-4)
    assert not torch.allclose(beside(8), beside(limit + 1), atol=1e-2)
    check_rope(model.config, limit)
    with pytest.raises(StageError, match="to 16 or less"):
        check_rope(model.config, limit + 1)


def test_plain_positions_have_no_limit() -> None:
    assert independent_length(config(None)) is None
    check_rope(config(None), 10**6)
