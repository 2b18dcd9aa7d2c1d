"""Which families keep packed examples apart: found by a forward pass, and refused by the stage where they do not."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    FalconConfig,
    GptOssConfig,
    LlamaConfig,
    MambaConfig,
    MptConfig,
    OPTConfig,
    PreTrainedConfig,
    Qwen2Config,
)

from alignment.errors import StageError
from alignment.records import Artifact
from alignment.stage import StageContext
from alignment.stages.sft import run
from alignment.training.packing import leaks

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
APART = {
    "llama": LlamaConfig(**SIZES, intermediate_size=64, initializer_range=0.3),
    "qwen2": Qwen2Config(**SIZES, num_key_value_heads=2, intermediate_size=64, initializer_range=0.3),
}
TOGETHER = {
    "opt": OPTConfig(**SIZES, ffn_dim=64, word_embed_proj_dim=32, init_std=0.3),
    "bloom": BloomConfig(vocab_size=64, hidden_size=32, n_head=4, n_layer=2, initializer_range=0.3),
    "mpt": MptConfig(vocab_size=64, d_model=32, n_heads=4, n_layers=2, initializer_range=0.3),
    "falcon with alibi": FalconConfig(**SIZES, alibi=True, initializer_range=0.3),
    "mamba": MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, initializer_range=0.3),
}


def made(config: PreTrainedConfig) -> torch.nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("family", APART)
def test_kept_apart(family: str) -> None:
    assert not leaks(made(APART[family]))


@pytest.mark.parametrize("family", TOGETHER)
def test_seeing_each_other(family: str) -> None:
    assert leaks(made(TOGETHER[family]))


def test_a_verdict_is_that_of_a_longer_row() -> None:
    """An independent look: the second example's logits alone, and behind another, by hand-made positions."""
    config = GptOssConfig(
        **SIZES, num_key_value_heads=2, head_dim=8, intermediate_size=32, num_local_experts=2, num_experts_per_tok=1,
        initializer_range=0.3,
    )  # fmt: skip
    for model in (made(config), made(APART["llama"])):
        model.eval()
        first, second = torch.arange(8)[None], torch.arange(20, 28)[None]
        positions = torch.arange(8).repeat(2)[None]
        with torch.no_grad():
            alone = model(second, use_cache=False).logits[0]
            behind = model(torch.cat([first, second], 1), position_ids=positions, use_cache=False).logits[0, 8:]
        apart = torch.allclose(alone, behind, atol=1e-3)
        assert leaks(model) == (not apart)


def test_the_stage_refuses(tiny_model: Path, make_context: Callable[..., StageContext], tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    config = OPTConfig(**SIZES | {"vocab_size": len(tokenizer)}, ffn_dim=64, word_embed_proj_dim=32)
    made(config).save_pretrained(tmp_path / "opt")
    tokenizer.save_pretrained(tmp_path / "opt")
    path = str(tmp_path / "opt")
    base = Artifact(name="base", kind="model", version=1, digest="0", path=path, key=path)
    context = make_context(tmp_path / "run", "sft", {"base": base}, settings={"packing": True})
    with pytest.raises(
        StageError, match=r"packing: .* lets the examples of a row see each other; set packing to false"
    ):
        run(context.recipe.stages["sft"], context)
