"""Dropout off wherever a family keeps it, and the first KL and the first loss of trainers with a reference."""

import math
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from pydantic import ValidationError
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    FalconConfig,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    PreTrainedConfig,
)

from alignment.errors import StageError
from alignment.recipe.stages.grpo import GrpoStage
from alignment.recipe.stages.preference.dpo import DpoStage
from alignment.records import Artifact
from alignment.stage import StageContext
from alignment.training.dropout import check_no_dropout, configured_dropout, switch_off_dropout

MakeContext = Callable[..., StageContext]
SIZES = {"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}


def opt(vocabulary: int = 64) -> OPTConfig:
    return OPTConfig(
        **SIZES | {"vocab_size": vocabulary}, ffn_dim=64, max_position_embeddings=256, word_embed_proj_dim=32,
        dropout=0.3, attention_dropout=0.3, layerdrop=0.3,
    )  # fmt: skip


FAMILIES: dict[str, Callable[[], PreTrainedConfig]] = {
    "opt": opt,
    "falcon": lambda: FalconConfig(**SIZES, hidden_dropout=0.3, attention_dropout=0.3),
    "bloom": lambda: BloomConfig(vocab_size=64, hidden_size=32, n_head=4, n_layer=2, hidden_dropout=0.3),
    "gpt2": lambda: GPT2Config(vocab_size=64, n_embd=32, n_head=4, n_layer=2, resid_pdrop=0.3, attn_pdrop=0.3),
    "llama": lambda: LlamaConfig(**SIZES, intermediate_size=64, attention_dropout=0.3),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_no_family_draws_in_training_mode(family: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family]())
    before = model.config.to_dict()
    with pytest.raises(StageError, match="other logits at each pass"):
        check_no_dropout(model)
    switch_off_dropout(model)
    check_no_dropout(model)
    with configured_dropout(model):
        assert model.config.to_dict() == before  # what is written says what the model is


def test_an_adapters_dropout_is_off_as_well() -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES["llama"]())
    config = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.5, task_type="CAUSAL_LM")
    adapted: Any = get_peft_model(model, config)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight)
    with pytest.raises(StageError):
        check_no_dropout(adapted)
    switch_off_dropout(adapted)
    check_no_dropout(adapted)


@pytest.mark.parametrize("stage", [DpoStage, GrpoStage])
def test_an_adapters_dropout_is_refused_where_it_would_be_ignored(stage: Any) -> None:
    settings = {"model": "base", "lora": {"dropout": 0.1}}
    settings |= (
        {"kind": "dpo", "preferences": "p"}
        if stage is DpoStage
        else {"kind": "grpo", "rewards": [{"kind": "length", "at_most": 3}]}
    )
    with pytest.raises(ValidationError, match=r"lora\.dropout=0\.1: the policy is compared with what it was"):
        stage.model_validate(settings)
    stage.model_validate(settings | {"lora": {}})


@pytest.fixture(scope="module")
def opt_base(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A tiny OPT with dropout of every kind, under the tiny model's tokenizer."""
    folder = tmp_path_factory.mktemp("opt")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    torch.manual_seed(0)
    config = opt(len(tokenizer))
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    config.bos_token_id = tokenizer.eos_token_id
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Artifact(name="base", kind="model", version=1, digest="0", path=str(folder), key=str(folder))


GROUP = {
    "model": "base", "steps": 1, "episodes": 8, "per_prompt": 4, "batch_size": 4, "beta": 0.1, "minibatches": 2,
    "sampling": {"max_new_tokens": 6}, "warmup": 0.0, "rewards": [{"kind": "length", "at_most": 3}],
}  # fmt: skip
DPO = {"model": "base", "epochs": 1, "batch_size": 8}


@pytest.mark.parametrize("lora", [{"rank": 4, "alpha": 8}, None], ids=["adapter", "all weights"])
@pytest.mark.parametrize("kind", ["dpo", "grpo", "rloo"])
def test_a_policy_starts_as_its_reference(
    kind: str, lora: Any, opt_base: Artifact, preferences: Artifact, make_context: MakeContext, tmp_path: Path
) -> None:
    """On the old code: GRPO's first KL is 4 nats, and DPO's first loss anything."""
    settings = DPO if kind == "dpo" else {"kind": kind, **GROUP}
    context = make_context(
        tmp_path, kind, {"base": opt_base, "preferences": preferences}, settings={**settings, "lora": lora},
        changes={"model.dtype": "bfloat16"},
    )  # fmt: skip
    module = "grpo" if kind == "rloo" else kind
    result = import_module(f"alignment.stages.{module}").run(context.recipe.stages[kind], context)
    if kind == "dpo":
        assert result.curves["loss"][0][1] == pytest.approx(math.log(2), abs=1e-3)
        assert result.curves["rewards/margins"][0][1] == pytest.approx(0.0, abs=1e-3)
    else:
        assert result.curves["kl_per_token"][0][1] == pytest.approx(0.0, abs=1e-3)
    if lora is None:
        assert AutoModelForCausalLM.from_pretrained(context.output).config.layerdrop == 0.3
