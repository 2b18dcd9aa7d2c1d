"""(IA)³ and a model's own weights: what is computed, what is trained, how much it is, and what is refused."""

import copy
from typing import Any

import pytest
import torch
from transformers import GPT2Config, LlamaConfig
from transformers.pytorch_utils import Conv1D

from alignment.checks.adapters.kinds import attachment_faults, kind_faults, virtual_tokens_of
from alignment.checks.adapters.lora import stacking_faults
from alignment.errors import InputError
from alignment.models.adapter_kinds.own_weights import freeze
from alignment.models.adapters import adapt, add_ia3
from alignment.models.families.lora_targets import without_weights
from alignment.plan.sizes import model_size
from alignment.plan.stages import Planner
from alignment.recipe.load import load_recipe
from alignment.recipe.recipe import Recipe
from alignment.recipe.stages.adapters import BitFit, Ia3, Layers
from tests.tiny_families import build, config

IDS = torch.tensor([[1, 2, 3, 5, 8, 13]])
LLAMA = {"vocab_size": 48, "hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4,
         "num_key_value_heads": 2}  # fmt: skip


def drawn(family: str, dtype: torch.dtype = torch.float32) -> Any:
    """A model with factors that are drawn."""
    model = add_ia3(build(family, dtype=dtype), Ia3(kind="ia3")).eval()
    torch.manual_seed(3)
    for name, weight in model.named_parameters():
        if "ia3_l" in name:
            weight.data = 0.5 + torch.rand_like(weight)
    return model


def by_hand(model: Any) -> Any:
    """Liu et al. 2022, section 3.3: outputs of keys and values times l, and the input of the second layer times l."""
    plain = copy.deepcopy(model).unload()
    for name, module in model.named_modules():
        if not hasattr(module, "ia3_l"):
            continue
        factors = module.ia3_l["default"].detach().flatten()
        layer = plain.get_submodule(name.removeprefix("base_model.model."))
        turned = isinstance(layer, Conv1D)  # GPT-2 holds its weights the other way round
        if module.is_feedforward:
            layer.weight.data *= factors[:, None] if turned else factors[None]
        else:
            layer.weight.data *= factors[None] if turned else factors[:, None]
            if layer.bias is not None:
                layer.bias.data *= factors
    return plain


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "opt", "phi3", "falcon", "bloom"])
def test_what_ia3_computes(family: str) -> None:
    model = drawn(family)
    with torch.no_grad():
        wanted, plain = by_hand(model)(IDS).logits, build(family)(IDS).logits
        assert (wanted - plain).abs().max() > 1e-2
        torch.testing.assert_close(model(IDS).logits, wanted, atol=2e-5, rtol=1e-4)
        with model.disable_adapter():
            torch.testing.assert_close(model(IDS).logits, plain, atol=0, rtol=0)
        torch.testing.assert_close(model.merge_and_unload()(IDS).logits, wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fresh_factors_change_nothing_and_are_float32(dtype: torch.dtype) -> None:
    plain = build("llama", dtype=dtype)
    with torch.no_grad():
        expected = plain(IDS).logits
        model = add_ia3(plain, Ia3(kind="ia3")).eval()
        assert {weight.dtype for weight in model.parameters() if weight.requires_grad} == {torch.float32}
        torch.testing.assert_close(model(IDS).logits, expected, atol=0, rtol=0)


PARTS: dict[str, Any] = {
    "ia3": Ia3(kind="ia3"),
    "named": Ia3(kind="ia3", targets=("q_proj",), feedforward=("up_proj", "gate_proj")),
    "biases": BitFit(kind="bitfit"),
    "last": Layers(kind="layers", last=2),
    "modules": Layers(kind="layers", modules=("layers.0.mlp", "embed_tokens")),
}


@pytest.mark.parametrize("name", list(PARTS))
def test_how_many_weights_are_trained(name: str) -> None:
    """q 16 × 16, k and v 16 × 8, o 16 × 16, the others 16 × 40; two norms of 16 a layer, and one at the end."""
    shape = LlamaConfig(**LLAMA, attention_bias=True, mlp_bias=True, tie_word_embeddings=False)
    layer = (2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 40) + (16 + 8 + 8 + 16 + 40 + 40 + 16) + 2 * 16
    expected = {
        "ia3": 3 * (8 + 8 + 40),
        "named": 3 * (16 + 16 + 16),
        "biases": 3 * (16 + 8 + 8 + 16 + 40 + 40 + 16),
        "last": 2 * layer + 16,
        "modules": 3 * 16 * 40 + 40 + 40 + 16 + 48 * 16,
    }
    model = adapt(without_weights(shape), PARTS[name], None)  # type: ignore[arg-type]
    trained = {key: weight for key, weight in model.named_parameters() if weight.requires_grad}
    assert sum(weight.numel() for weight in trained.values()) == expected[name]
    assert model_size(shape).trained(PARTS[name]) == expected[name]


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "opt", "llama", "qwen2", "mixtral", "falcon", "gemma2"])
@pytest.mark.parametrize("part", [Ia3(kind="ia3"), BitFit(kind="bitfit"), Layers(kind="layers", last=1)], ids=str)
def test_the_plan_counts_as_the_model_does(family: str, part: Any) -> None:
    """Tied embeddings once; a family without biases is refused."""
    if part.label() == "bitfit" and family in ("llama", "mixtral", "gemma2"):
        with pytest.raises(Exception, match="has no biases"):
            adapt(build(family), part, None)  # type: ignore[arg-type]
        return
    model = adapt(build(family), part, None)  # type: ignore[arg-type]
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert 0 < trained < sum(weight.numel() for weight in model.parameters())
    assert model_size(config(family)).trained(part) == trained


def test_what_is_frozen_stays(tmp_path: Any) -> None:
    """A step of gradient descent moves the last layer and the norm behind it, and nothing else."""
    model = freeze(build("llama"), Layers(kind="layers", last=1))
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=1.0)
    model(IDS, labels=IDS).loss.backward()
    optimizer.step()
    moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert moved
    assert all(name.startswith(("model.layers.1.", "model.norm.")) for name in moved)


def recipe(stages: dict[str, Any], **others: Any) -> Recipe:
    return Recipe.model_validate({"name": "test", "model": {"base": "x", **others.pop("model", {})}, "stages": stages,
                                  **others})  # fmt: skip


def problems(shape: Any, **adapter: Any) -> list[str]:
    found = attachment_faults(recipe({"sft": {"kind": "sft", "adapter": adapter}}), shape)
    return [str(fault) for fault in found]


def test_a_place_that_the_model_has_not() -> None:
    llama = LlamaConfig(**LLAMA)
    assert problems(llama, kind="ia3") == problems(llama, kind="prompt") == problems(llama, kind="prefix") == []
    assert problems(llama, kind="layers", last=3, modules=["embed_tokens"]) == []
    assert problems(llama, kind="bitfit") == [
        "stages.sft.adapter.kind: LlamaForCausalLM has no biases; take ia3, layers or lora"
    ]
    assert problems(GPT2Config(n_layer=1), kind="bitfit") == []
    assert "LlamaForCausalLM has no layer k_prj that can be scaled; did you mean k_proj?" in problems(
        llama, kind="ia3", targets=["k_prj"]
    )[0]  # fmt: skip
    assert problems(llama, kind="layers", last=4) == [
        "stages.sft.adapter.last: 4, and LlamaForCausalLM has 3 layers; set it to 3 or less"
    ]
    assert "has no part embed_token with weights of its own; did you mean embed_tokens?" in problems(
        llama, kind="layers", modules=["embed_token"]
    )[0]  # fmt: skip
    assert problems(config("mistral"), kind="prefix")[0].endswith("a prefix would leave; take prompt or p_tuning")
    assert "recurrent states" in problems(config("mamba"), kind="prompt")[0]


SOFT = {"kind": "sft", "adapter": {"kind": "prompt"}}
DPO = {"kind": "dpo", "model": "sft", "preferences": "pairs"}


def test_what_cannot_work_with_an_adapter() -> None:
    def said(stages: dict[str, Any], **others: Any) -> list[str]:
        return [str(fault) for fault in kind_faults(recipe(stages, **others))]

    reward = {"kind": "reward", "model": "sft", "preferences": "pairs"}
    cannot = "sft trains virtual tokens (prompt), which cannot be merged into weights"
    assert said({"sft": SOFT, "dpo": DPO}) == []
    assert said({"sft": SOFT, "dpo": DPO, "reward": reward | {"model": "dpo"}}) == [
        f"stages.reward.model: {cannot}; name base, or a policy of another adapter"
    ]
    assert said({"sft": SOFT, "small": {"kind": "quantise", "model": "sft", "scheme": "int8"}}) == [
        f"stages.small.model: {cannot}; name base, or a policy of another adapter"
    ]
    assert said({"sft": SOFT | {"adapter": {"kind": "ia3"}}, "reward": reward}) == []
    vllm = {"resources": {"vllm": {"url": "http://localhost:1"}}}
    assert said({"sft": SOFT}, **vllm) == [
        "stages.sft.adapter: prompt, and the vLLM server takes low-rank adapters alone; "
        "set lora in its place, or remove resources.vllm"
    ]
    sharded = {"resources": {"workers": 2, "sharding": "fsdp"}}
    assert "prompt, and fsdp shards low-rank adapters and all weights alone" in said({"sft": SOFT}, **sharded)[0]
    whole = {"kind": "sft", "adapter": {"kind": "layers", "last": 1}}
    assert "a quantised base cannot train its own weights" in said({"sft": whole}, model={"quantise": "nf4"})[0]
    assert said({"sft": SOFT}, model={"quantise": "nf4"}) == []


def test_settings_that_do_not_fit() -> None:
    for stage, words in (
        ({"kind": "sft", "lora": {}, "adapter": {"kind": "ia3"}}, "it has lora and adapter"),
        ({"kind": "sft", "packing": True, **{"adapter": {"kind": "prompt"}}}, "virtual tokens stand before each"),
        ({"kind": "sft", "gradient_checkpointing": True, "adapter": {"kind": "prefix"}}, "without the prefix's keys"),
        ({"kind": "sft", "adapter": {"kind": "layers"}}, "it trains nothing"),
        ({"kind": "reward", "preferences": "pairs", "adapter": {"kind": "prefix"}}, "saved as whole weights"),
        ({"kind": "pair_classifier", "preferences": "pairs", "adapter": {"kind": "prompt"}}, "saved as whole weights"),
        ({"kind": "ppo", "model": "base", "reward": "r", "critic": "policy", "adapter": {"kind": "ia3"}}, "a trunk of"),
        (
            {"kind": "distil", "teacher": "base", "layers": 0.5, "adapter": {"kind": "ia3"}},
            "set lora to null, and leave adapter out",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            recipe({"x": stage})


def test_one_adapter_on_one_base() -> None:
    def said(**stages: Any) -> list[str]:
        return [str(fault) for fault in stacking_faults(recipe({"sft": SOFT, **stages}))]

    ia3, bits = {"adapter": {"kind": "ia3"}}, {"adapter": {"kind": "bitfit"}}
    assert (
        said(dpo=DPO) == said(dpo=DPO | {"adapter": {"kind": "prompt"}}) == said(dpo=DPO | {"lora": {"rank": 16}}) == []
    )
    assert said(dpo=DPO | {"adapter": {"kind": "prompt", "tokens": 8}}) == [
        "stages.dpo.adapter.tokens: 8, and dpo trains on sft's adapter, where it is 20; "
        "leave it out, or set it in stages.sft"
    ]
    remedy = "leave it out, or set it in stages.sft"
    assert said(dpo=DPO | ia3) == [
        f"stages.dpo.adapter: ia3, and dpo trains on sft's adapter, which is prompt; {remedy}"
    ]
    assert said(dpo=DPO | {"lora": {"rank": 4}}) == [
        f"stages.dpo.lora: lora, and dpo trains on sft's adapter, which is prompt; {remedy}"
    ]
    assert "weights of the base would not be trained" in said(dpo=DPO | bits)[0]
    assert "all weights would not be trained" in said(dpo=DPO | {"lora": None})[0]
    whole = SOFT | bits
    for on_top in (ia3, bits, {"lora": {"rank": 4}}, {"lora": None}):
        assert [str(fault) for fault in stacking_faults(recipe({"sft": whole, "dpo": DPO | on_top}))] == []


def test_virtual_tokens_count_towards_the_context() -> None:
    found = recipe({"sft": SOFT, "dpo": DPO, "other": {"kind": "sft"}})
    assert [virtual_tokens_of(found, name) for name in ("sft", "dpo", "other")] == [20, 20, 0]


def test_the_plan_of_a_stage() -> None:
    """What is trained, and on top of it the same adapter; a frozen copy of virtual tokens is DPO's reference."""
    size, texts = model_size(LlamaConfig(**LLAMA)), Any
    found = recipe({"sft": SOFT, "dpo": DPO})
    planner = Planner(found, size, texts)  # type: ignore[arg-type]
    assert size.trained(planner.adapter_of("dpo")) == 20 * 16  # type: ignore[arg-type]
    whole = Planner(recipe({"sft": SOFT | {"adapter": {"kind": "layers", "last": 1}}}), size, texts)  # type: ignore[arg-type]
    assert whole.is_whole("sft")


def test_a_mistake_in_it_is_named(tmp_path: Any) -> None:
    def said(adapter: str) -> str:
        path = tmp_path / "recipe.yaml"
        path.write_text(
            f"name: x\nmodel: {{base: /tmp}}\nstages:\n  sft:\n    kind: sft\n    adapter: {adapter}\n", "utf-8"
        )
        with pytest.raises(InputError) as caught:
            load_recipe(path)
        return str(caught.value).removeprefix(f"{path}:6:stages.sft.")

    assert said("{kind: ia4}") == "adapter: unknown kind 'ia4'; did you mean ia3?"
    assert said("{tokens: 3}").startswith("adapter: the adapter has no kind; add `kind: ` and one of ia3, prompt")
    assert said("{kind: prompt, token: 3}") == "adapter.token: unknown key; did you mean tokens?"
    assert said("{kind: layers}").startswith("adapter: it trains nothing: set last, modules or both")
    assert said("{kind: ia3, last: 2}").startswith("adapter.last: unknown key; known here: kind, targets, feedforward")
