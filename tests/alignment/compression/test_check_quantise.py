"""What is wrong with a recipe that quantises, said in a line before anything is loaded."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from alignment.checks.compression.quantised import export_faults, quantised_base_faults, quantised_policy_faults
from alignment.compression import schemes
from alignment.recipe.recipe import Recipe

SMALL = {"kind": "quantise", "model": "sft", "scheme": "q8_0"}


def recipe(base: str = "x", dtype: str = "float32", device: str = "cpu", **stages: dict[str, Any]) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "test",
            "model": {"base": base, "dtype": dtype},
            "resources": {"device": device},
            "stages": {"sft": {"kind": "sft"}, "small": SMALL} | stages,
        }
    )


def test_what_trains_or_quantises_a_quantised_policy() -> None:
    assert list(quantised_policy_faults(recipe())) == []
    train = {"kind": "sft", "model": "small"}
    [fault] = quantised_policy_faults(recipe(again=train))
    assert str(fault) == (
        "stages.again.model: small is quantised (q8_0), and no stage trains on quantised weights of another stage; "
        "train sft, and quantise what comes of it"
    )
    [fault] = quantised_policy_faults(recipe(again={**SMALL, "model": "small"}))
    assert str(fault) == "stages.again.model: small is quantised already (q8_0); name sft"


def test_a_quantised_base_whose_weights_would_all_be_trained(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    config = {"model_type": "llama", "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = [str(fault) for fault in quantised_base_faults(recipe(str(tmp_path), sft={"kind": "sft", "lora": None}))]
    assert found == [
        "stages.sft.lora: the base model is quantised (bitsandbytes), and integers cannot be trained; "
        "set lora, or give the model in plain numbers"
    ]
    assert list(quantised_base_faults(recipe(str(tmp_path)))) == []  # an adapter on it
    [fault] = quantised_base_faults(recipe(str(tmp_path), small={**SMALL, "model": "base"}))
    assert "quantised already (bitsandbytes)" in str(fault)


def exporting(scheme: str, kind: str = "llama", inner: int = 11008, **more: Any) -> list[str]:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made = recipe(small={**SMALL, "scheme": scheme}, **more)
    shape = AutoConfig.for_model(kind, **({} if kind == "gpt2" else {"intermediate_size": inner}))
    tokenizer: Any = SimpleNamespace(backend_tokenizer=raw)
    return [str(fault) for fault in export_faults(made, shape, tokenizer)]


def test_kernels_that_the_device_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchao")
    assert exporting("int8") == []
    assert exporting("int4") == [
        "stages.small.scheme: torchao's int4 products have kernels for GPUs alone, and here is none; "
        "take nf4, q4_1 or q4_0"
    ]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert exporting("int4", device="auto", dtype="bfloat16") == []
    assert "bfloat16" in exporting("int4", device="auto")[0]


def test_rows_that_are_no_whole_blocks() -> None:
    pytest.importorskip("bitsandbytes")
    assert exporting("nf4") == []
    [line] = exporting("nf4", inner=96)
    assert "rows of whole blocks of 64, and layers here have 96 inputs; take int8" in line


def test_a_library_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schemes, "missing_library", lambda method: method)
    assert exporting("q8_0") == []
    [line] = exporting("nf4")
    assert line.startswith("stages.small.scheme: nf4 is bitsandbytes's, which is not installed; run pip install")


def test_a_model_that_has_no_place_in_a_gguf_file() -> None:
    [line] = exporting("q8_0", "gpt2")
    assert "a GGUF file of a gpt2 model is not known here" in line
    assert exporting("q8_0", "qwen2") == []
