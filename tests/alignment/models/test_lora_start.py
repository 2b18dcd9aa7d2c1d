"""PiSSA and OLoRA: held against PEFT's, which take the start out of the base, step by step; and what is saved."""

import math
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from alignment.checks.adapters.kinds import attachment_faults
from alignment.models.adapters import add_lora
from alignment.models.export import export_merged
from alignment.models.load import load_policy
from alignment.plan.sizes import model_size
from alignment.recipe.base import Lora
from alignment.recipe.recipe import Recipe
from alignment.records import Artifact
from alignment.stage import StageContext
from tests.alignment.conftest import MODULES, artifact_of, curve
from tests.tiny_families import build, config

MakeContext = Callable[..., StageContext]
IDS = torch.tensor([[1, 2, 3, 5, 8, 13]])
LAYERS = ("q_proj", "v_proj", "down_proj")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(IDS).logits
        return found


@pytest.mark.parametrize("stabilised", [False, True])
@pytest.mark.parametrize("init", ["pissa", pytest.param("olora", marks=pytest.mark.slow)])
def test_training_is_pefts(init: str, stabilised: bool) -> None:
    """Twenty steps of AdamW on the same text: losses as those of PEFT's adapter on its remainder of the base."""
    lora = Lora(rank=4, alpha=8, targets=LAYERS, rank_stabilised=stabilised, init=init)  # type: ignore[arg-type]
    ours = add_lora(build("llama"), lora)
    theirs = get_peft_model(
        build("llama"),
        LoraConfig(r=4, lora_alpha=8, target_modules=list(LAYERS), use_rslora=stabilised, init_lora_weights=init),
    )
    kept = {name: weight.detach().clone() for name, weight in ours.named_parameters()}
    losses: list[list[float]] = []
    for model in (ours, theirs):
        optimizer = torch.optim.AdamW((w for w in model.parameters() if w.requires_grad), lr=1e-2, weight_decay=0.0)
        losses.append([])
        for _ in range(20):
            loss = model(IDS, labels=IDS).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[-1].append(float(loss.detach()))
    assert losses[0][-1] < 0.8 * losses[0][0]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
    torch.testing.assert_close(logits(ours), logits(theirs), atol=2e-2, rtol=1e-2)
    for name, weight in ours.named_parameters():
        if "lora_A" in name:
            assert torch.equal(weight[4:], kept[name][4:])
            assert not torch.equal(weight[:4], kept[name][:4])
        elif "lora_B" in name:
            assert torch.equal(weight[:, 4:], kept[name][:, 4:])
        else:
            assert torch.equal(weight, kept[name])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_it_begins_as_the_base(family: str, dora: bool, init: str) -> None:
    """Also the base with the adapter off; and the first half alone is PiSSA's best approximation (Eckart and Young)."""
    plain = logits(build(family))
    model = add_lora(build(family), Lora(rank=4, alpha=8, dora=dora, init=init))  # type: ignore[arg-type]
    torch.testing.assert_close(logits(model), plain, atol=2e-5, rtol=1e-4)
    with model.disable_adapter():
        off = logits(model)
    torch.testing.assert_close(off, plain, atol=0, rtol=0)
    if init == "olora" or family == "gpt2":
        return
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    weight = layer.base_layer.weight.detach()
    start = 2.0 * layer.lora_B["default"].weight[:, :4] @ layer.lora_A["default"].weight[:4]
    rest = torch.linalg.svdvals(weight)[4:].square().sum().sqrt()
    assert float((weight - start).norm()) == pytest.approx(float(rest), rel=1e-4)


def test_the_plan_counts_both_halves() -> None:
    lora = Lora(rank=4, targets=("q_proj",), init="pissa")
    model = add_lora(build("llama"), lora)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert model_size(config("llama")).adapter(lora) == trained


def test_what_is_refused() -> None:
    def said(kind: Any, **lora: Any) -> list[str]:
        stages = {"sft": {"kind": "sft", "lora": lora}}
        recipe = Recipe.model_validate({"name": "test", "model": {"base": "x"}, "stages": stages})
        return [str(fault) for fault in attachment_faults(recipe, kind)]

    assert (
        "weights of the experts of MixtralForCausalLM are stacked" in said(config("mixtral"), init="pissa", rank=4)[0]
    )
    assert "has 16; set rank to 16 or less" in said(config("llama"), init="olora", rank=17)[0]
    assert said(config("llama"), init="olora", rank=16) == []
    with pytest.raises(ValueError, match="weight_decay shrinks"):
        Recipe.model_validate(
            {"name": "t", "model": {"base": "x"},
             "stages": {"sft": {"kind": "sft", "weight_decay": 0.1, "lora": {"init": "pissa"}}}}
        )  # fmt: skip


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_its_life(init: str, base: Artifact, preferences: Artifact, make_context: MakeContext, tmp_path: Path) -> None:
    """Trained, loaded on the base as it always was, merged; DPO fresh and on top starts at ln 2, PPO at a KL of 0."""
    lora = {"rank": 4, "alpha": 8, "init": init}

    def run(name: str, inputs: dict[str, Artifact], **settings: Any) -> tuple[Any, StageContext]:
        folder = tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        context = make_context(folder, name, inputs, settings=settings)
        stage = context.recipe.stages[name]  # type: ignore[attr-defined]
        return import_module(MODULES[stage.kind]).run(stage, context), context

    _result, context = run("sft", {"base": base}, epochs=1, batch_size=4, lora=lora)
    trained = artifact_of("sft", "model", context.output, {"base": base})
    ours = logits(load_policy(trained, base, context.run)[0])
    assert (ours - logits(load_policy(base, base, context.run)[0])).abs().max() > 1e-3
    torch.testing.assert_close(logits(AutoPeftModelForCausalLM.from_pretrained(trained.path)), ours)
    export_merged(trained, base, context.run, tmp_path / "merged")
    merged = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    torch.testing.assert_close(merged, ours, atol=2e-5, rtol=1e-4)
    inputs = {"base": base, "sft": trained, "preferences": preferences}
    for start in ("base", "sft"):
        _result, dpo = run("dpo", inputs, model=start, epochs=1, lora=lora)
        assert curve(dpo.output)[0] == pytest.approx(math.log(2), abs=1e-5)
    rewards = [{"kind": "length_penalty", "unit": "characters", "free": 2, "full": 20}]
    result, _context = run("ppo", {"base": base}, kind="ppo", model="base", steps=2, episodes=8, lora=lora, reward=None,
                           rewards=rewards, sampling={"max_new_tokens": 4})  # fmt: skip
    assert result.curves["kl"][0][1] == pytest.approx(0, abs=1e-5)
    assert result.curves["kl"][-1][1] != 0
