"""What an adapter computes, where it sits and how large it is, from the papers' formulas; what it cannot be."""

import copy
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GPT2Config, LlamaConfig
from transformers.pytorch_utils import Conv1D

from alignment.checks.adapters.kinds import attachment_faults
from alignment.checks.adapters.lora import stacking_faults
from alignment.checks.graph import wiring_faults
from alignment.errors import StageError
from alignment.models.adapters import add_lora
from alignment.models.families.lora_targets import without_weights
from alignment.plan.sizes import model_size
from alignment.plan.stages import Planner
from alignment.recipe.base import Lora
from alignment.recipe.recipe import Recipe
from tests.tiny_families import build, config

LLAMA = {"vocab_size": 48, "hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2}  # fmt: skip
SFT = {"kind": "sft", "lora": {"rank": 4, "alpha": 8, "targets": ["q_proj"], "dora": True}}
IDS = torch.tensor([[1, 2, 3, 5, 8, 13]])


def drawn(lora: Lora, name: str = "llama") -> Any:
    """A model with an adapter whose weights are all drawn, lengths included."""
    model = add_lora(build(name), lora).eval()
    torch.manual_seed(3)
    for key, weight in model.named_parameters():
        if "lora_magnitude_vector" in key:
            weight.data *= 1 + 0.3 * torch.rand_like(weight)
        elif "lora_" in key:
            nn.init.normal_(weight, std=0.2)
    return model


def by_hand(model: Any, scale: float, *, dora: bool) -> Any:
    """The model with W + s·BA in place of each adapted weight, or m·(W + s·BA) / ‖W + s·BA‖ of each output's row."""
    plain = copy.deepcopy(model).unload()
    for name, module in model.named_modules():
        if not hasattr(module, "lora_A"):
            continue
        down, up = module.lora_A["default"].weight, module.lora_B["default"].weight
        weight = module.base_layer.weight.detach().clone()
        turned = isinstance(module.base_layer, Conv1D)  # GPT-2 holds its weights the other way round
        whole = (weight.T if turned else weight) + scale * (up @ down)
        if dora:
            lengths = torch.tensor([math.sqrt(float((row.detach().double() ** 2).sum())) for row in whole])
            whole = module.lora_magnitude_vector["default"].weight[:, None] * whole / lengths[:, None]
        plain.get_submodule(name.removeprefix("base_model.model.")).weight.data = whole.T if turned else whole
    return plain


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("stabilised", [False, True])
@pytest.mark.parametrize("dora", [False, True])
def test_what_an_adapter_computes(name: str, stabilised: bool, dora: bool) -> None:
    """Hu et al. 2021: 8/4. Kalajdzievski 2023: 8/√4. Liu et al. 2024, equation 5."""
    model = drawn(Lora(rank=4, alpha=8, rank_stabilised=stabilised, dora=dora), name)
    expected = by_hand(model, 4.0 if stabilised else 2.0, dora=dora)
    with torch.no_grad():
        wanted, plain = expected(IDS).logits, build(name).eval()(IDS).logits
        assert (wanted - plain).abs().max() > 1e-2
        torch.testing.assert_close(model(IDS).logits, wanted, atol=2e-5, rtol=1e-4)
        with model.disable_adapter():
            torch.testing.assert_close(model(IDS).logits, plain, atol=0, rtol=0)
        torch.testing.assert_close(model.merge_and_unload()(IDS).logits, wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fresh_adapter_changes_nothing_and_is_float32(dtype: torch.dtype) -> None:
    """Lengths are those of the base's own rows, and B is 0."""
    plain = build("llama", dtype=dtype).eval()
    with torch.no_grad():
        expected = plain(IDS).logits
        model = add_lora(plain, Lora(rank=4, dora=True)).eval()
        assert {weight.dtype for weight in model.parameters() if weight.requires_grad} == {torch.float32}
        torch.testing.assert_close(model(IDS).logits, expected, atol=0, rtol=0)


def test_how_large_adapters_are() -> None:
    """q is 16 × 16, k and v 16 × 8, o 16 × 16, gate and up 16 × 40, down 40 × 16; rank × (inputs + outputs) each, and
    with DoRA a number more for each output."""
    size = model_size(LlamaConfig(**LLAMA))
    expected = {
        ("q_proj",): (2 * 4 * 32, 2 * 16),
        ("q_proj", "mlp.down_proj"): (2 * 4 * (32 + 56), 2 * 32),
        ("self_attn.v_proj",): (2 * 4 * 24, 2 * 8),
        None: (2 * 4 * (32 + 24 + 24 + 32 + 56 + 56 + 56), 2 * (16 + 8 + 8 + 16 + 40 + 40 + 16)),
    }
    for targets, (factors, lengths) in expected.items():
        for dora in (False, True):
            lora = Lora(rank=4, targets=targets, dora=dora, rank_stabilised=True)
            counted = factors + (lengths if dora else 0)
            assert size.adapter(lora) == counted
            model = add_lora(without_weights(LlamaConfig(**LLAMA)), lora)
            assert sum(weight.numel() for weight in model.parameters() if weight.requires_grad) == counted


def test_the_plan_counts_lengths() -> None:
    recipe = Recipe.model_validate({"name": "test", "model": {"base": "x"}, "stages": {"sft": SFT}})
    size, texts = model_size(LlamaConfig(**LLAMA)), SimpleNamespace()
    planner = Planner(recipe, size, texts)  # type: ignore[arg-type]
    assert size.adapter(planner.adapter_of("sft") or Lora()) == 2 * 4 * 32 + 2 * 16


def layer_problems(kind: Any, **lora: Any) -> list[str]:
    recipe = Recipe.model_validate(
        {"name": "test", "model": {"base": "x"}, "stages": {"sft": {"kind": "sft", "lora": lora}}}
    )
    return [str(fault) for fault in attachment_faults(recipe, kind)]


def test_a_layer_that_the_model_has_not() -> None:
    llama = LlamaConfig(**LLAMA)
    assert layer_problems(llama, targets=["q_proj", "mlp.up_proj"]) == []
    assert layer_problems(llama, targets=["v_proj", "q_prj"]) == [
        "stages.sft.lora.targets.1: LlamaForCausalLM has no layer q_prj that is adapted; did you mean q_proj? "
        "it has down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj and v_proj"
    ]
    assert "no layer lm_head that is adapted" in layer_problems(llama, targets=["lm_head"])[0]
    assert "no layer proj that" in layer_problems(llama, targets=["proj"])[0]  # whole parts of names
    assert "it has c_attn, c_fc and c_proj" in layer_problems(GPT2Config(n_layer=1), targets=["q_proj"])[0]
    with pytest.raises(StageError, match=r"lora.targets.0: LlamaForCausalLM has no layer q_prj"):
        add_lora(without_weights(llama), Lora(targets=("q_prj",)))


def test_experts_have_no_lengths_and_drop_nothing() -> None:
    mixture = config("mixtral")
    assert layer_problems(mixture) == layer_problems(mixture, targets=["q_proj"], dora=True, dropout=0.1) == []
    assert layer_problems(mixture, dora=True) == [
        "stages.sft.lora.dora: adapters on the experts of MixtralForCausalLM have no lengths of their own; "
        "set it to false, or name targets without them"
    ]
    assert "stages.sft.lora.dropout: 0.1, and adapters on the experts" in layer_problems(mixture, dropout=0.1)[0]
    with pytest.raises(StageError, match=r"lora.dora: adapters on the experts"):
        add_lora(build("mixtral"), Lora(dora=True))


def stacking(**stages: Any) -> list[str]:
    stages = {"sft": SFT, **stages}
    return [
        str(fault)
        for fault in stacking_faults(Recipe.model_validate({"name": "test", "model": {"base": "x"}, "stages": stages}))
    ]


def test_an_adapter_is_trained_on_as_it_is() -> None:
    dpo = {"kind": "dpo", "model": "sft", "preferences": "pairs"}
    assert stacking(dpo=dpo) == stacking(dpo=dpo | {"lora": {"rank": 4, "dora": True}}) == []
    assert stacking(dpo=dpo | {"lora": {"rank": 8, "alpha": 8, "dropout": 0}}) == [
        "stages.dpo.lora.rank: 8, and dpo trains on sft's adapter, where it is 4; leave it out, or set it in stages.sft"
    ]
    assert stacking(dpo=dpo | {"lora": None}) == [
        "stages.dpo.lora: sft makes an adapter, which dpo trains on: all weights would not be trained; "
        "leave it out, or set stages.sft.lora to null"
    ]
    # A rank at its default is what a resolved recipe writes where nobody wished anything.
    further = {"dpo": dpo, "last": {"kind": "sft", "model": "dpo", "lora": {"targets": ["v_proj"], "rank": 16}}}
    assert [text.partition(";")[0] for text in stacking(**further)] == [
        "stages.last.lora.targets: v_proj, and last trains on sft's adapter, where it is q_proj",
    ]


def test_what_begins_anew_has_settings_of_its_own() -> None:
    """All weights, a reward model on the merged policy, a student of fewer layers, another stage on the base."""
    whole = SFT | {"lora": None}
    dpo = {"kind": "dpo", "model": "sft", "preferences": "pairs", "lora": {"rank": 8}}
    assert stacking(sft=whole, dpo=dpo) == []
    assert stacking(reward={"kind": "reward", "model": "sft", "preferences": "pairs", "lora": {"rank": 8}}) == []
    assert stacking(reward={"kind": "reward", "model": "sft", "preferences": "pairs", "lora": None}) == []
    assert stacking(small={"kind": "distil", "teacher": "sft", "model": "sft", "layers": 0.5, "lora": None}) == []
    assert stacking(other={"kind": "sft", "lora": None}) == []


def test_a_vllm_server_knows_no_lengths() -> None:
    values = {"name": "test", "model": {"base": "x"}, "stages": {"sft": SFT},
              "resources": {"vllm": {"url": "http://localhost:1"}}}  # fmt: skip
    faults = [str(fault) for fault in wiring_faults(Recipe.model_validate(values))]
    assert faults == [
        "stages.sft.lora.dora: the vLLM server takes adapters, and none with lengths of their own; "
        "set it to false, or remove resources.vllm"
    ]
