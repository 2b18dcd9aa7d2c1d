"""Tiny models whose rows are whole blocks of 32, as quantisation wants them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment.durable_files import folder_digest
from alignment.records import Artifact

SHAPE = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.3, "tie_word_embeddings": True,
    "bos_token_id": None,
}  # fmt: skip


def write_wide_model(folder: Path, make_model: Callable[..., Path], *, kind: str = "llama") -> Path:
    """A model of ``kind`` with the tiny tokenizer; biases of Qwen2's attention are not zero."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(make_model(folder))
    config: Any = AutoConfig.for_model(
        kind, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        **SHAPE,
    )  # fmt: skip
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
        if "layernorm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_wide_model(make_model: Callable[..., Path]) -> Callable[..., Path]:
    """:func:`write_wide_model`."""
    return lambda folder, **options: write_wide_model(folder, make_model, **options)


@pytest.fixture(scope="session")
def wide(make_wide_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A tiny Llama as the run's base."""
    folder = make_wide_model(tmp_path_factory.mktemp("wide") / "model")
    return Artifact(
        name="base", kind="model", version=1, digest=folder_digest(folder), path=str(folder), key=str(folder)
    )
