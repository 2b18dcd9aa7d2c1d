"""Quantisation-aware training: rounding by hand, what is saved, deaths, and what rounding costs afterwards."""

import json
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignment.durable_files import folder_digest
from alignment.errors import StageError
from alignment.models.fake_quantised import fake_quantise, group_of
from alignment.recipe.stages.preference.dpo import DpoStage
from alignment.recipe.stages.sft import SftStage
from alignment.records import Artifact
from alignment.stage import Progress
from tests.alignment.conftest import artifact_of

pytest.importorskip("torchao")
MakeContext = Callable[..., Any]
Rule = Callable[[torch.Tensor], torch.Tensor]
SFT = {"kind": "sft", "lora": None, "epochs": 4, "batch_size": 4, "learning_rate": 1e-3, "max_length": 64,
       "checkpoint_every": 2, "warmup": 0, "schedule": "constant"}  # fmt: skip
DPO = {"kind": "dpo", "model": "base", "preferences": "preferences", "lora": None, "epochs": 1, "batch_size": 4,
       "learning_rate": 1e-4, "max_length": 64, "checkpoint_every": 2, "warmup": 0, "schedule": "constant"}  # fmt: skip


def four_bits(group: int) -> Rule:
    """Sixteen levels from the least to the greatest weight of each group, by hand."""

    def rule(weight: torch.Tensor) -> torch.Tensor:
        rows = weight.reshape(-1, group)
        low, high = rows.min(1, keepdim=True).values, rows.max(1, keepdim=True).values
        step = (high - low) / 15
        return (((rows - low) / step).round().clamp(0, 15) * step + low).view_as(weight)

    return rule


def levels(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The place of each weight among 256 levels before it is bound to them, and the scale of its row, by hand.

    A row's largest weight lies at ±127.5, a tie that the last bit decides: the reciprocal is multiplied by.
    """
    scale = weight.abs().amax(1, keepdim=True) / 127.5
    return (weight * (1 / scale)).round(), scale


def eight_bits(weight: torch.Tensor) -> torch.Tensor:
    """256 levels, one scale a row, by hand."""
    places, scale = levels(weight)
    return places.clamp(-128, 127) * scale


def rounded(folder: str | Path, rule: Rule) -> Any:
    """A model with every linear layer's weights but the head's rounded."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            module.weight.data = rule(module.weight.data)
    return model


@pytest.mark.parametrize(
    ("scheme", "rule"), [("int4", four_bits(64)), ("q4_1", four_bits(32)), ("int8", eight_bits)]
)  # rows of 64 and 128
def test_a_pass_rounds_as_by_hand_and_leaves_the_weights(wide: Artifact, scheme: str, rule: Rule) -> None:
    ids = torch.tensor([[5, 80, 17, 200, 33, 6, 91]])
    model = AutoModelForCausalLM.from_pretrained(wide.path).eval()
    plain, before = model(ids).logits, {name: weight.clone() for name, weight in model.state_dict().items()}
    fake_quantise(model, scheme)
    with torch.no_grad():
        found, wanted = model(ids).logits, rounded(wide.path, rule)(ids).logits
    assert torch.allclose(found, wanted, atol=1e-4)
    assert not torch.allclose(found, plain, atol=1e-2 if scheme != "int8" else 1e-4)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_gradients_pass_the_rounding() -> None:
    """A layer y = round(w) x has the gradient of y = w x, that is x, and none where the levels end below w."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=40, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    )
    fake_quantise(model, "int8")
    layer, x = model.model.layers[0].mlp.up_proj, torch.randn(3, 32)
    layer(x).sum().backward()
    within = levels(layer.weight.detach())[0] <= 127
    assert 0 < (~within).sum() < 32
    assert torch.allclose(layer.weight.grad, torch.where(within, x.sum(0), 0.0), atol=1e-5)


def test_groups_divide_every_row() -> None:
    assert [group_of("int4", widths) for widths in ([256, 512], [576, 1536], [96], [48, 96])] == [128, 64, 32, None]
    assert group_of("q4_1", [256]) == 32


def trained(
    make_context: MakeContext, folder: Path, inputs: dict[str, Artifact], settings: dict[str, Any], die_at: int = 0
) -> tuple[Any, Path]:
    stage: Any = (SftStage if settings["kind"] == "sft" else DpoStage).model_validate(settings)

    def report(progress: Progress) -> None:
        if progress.step == die_at:
            raise KeyboardInterrupt

    shutil.rmtree(folder / "output", ignore_errors=True)
    changes = {f"stages.{stage.kind}": stage.model_dump(mode="json")}
    context = make_context(folder, stage.kind, inputs, changes=changes, report=report)
    return import_module(f"alignment.stages.{stage.kind}").run(stage, context), context.output


@pytest.mark.parametrize("settings", [SFT | {"qat": "q4_1"}, DPO | {"qat": "int8"}], ids=["sft", "dpo"])
def test_a_death_changes_nothing(
    settings: dict[str, Any], wide: Artifact, preferences: Artifact, make_context: MakeContext, tmp_path: Path
) -> None:
    inputs = {"base": wide, "preferences": preferences}
    result, output = trained(make_context, tmp_path / "whole", inputs, settings)
    with pytest.raises(KeyboardInterrupt):
        trained(make_context, tmp_path / "died", inputs, settings, die_at=3)
    again, resumed = trained(make_context, tmp_path / "died", inputs, settings)
    assert folder_digest(resumed) == folder_digest(output)
    assert again.metrics == result.metrics
    if settings["kind"] == "dpo":  # the policy is its reference at the start, rounded alike
        assert result.curves["loss"][0][1] == pytest.approx(torch.log(torch.tensor(2.0)).item(), abs=1e-4)


def test_what_is_saved_is_not_rounded(wide: Artifact, make_context: MakeContext, tmp_path: Path) -> None:
    _result, output = trained(make_context, tmp_path, {"base": wide}, SFT | {"qat": "int4", "epochs": 1})
    weights, before = load_file(output / "model.safetensors"), load_file(Path(wide.path) / "model.safetensors")
    assert weights.keys() == before.keys()
    weight = weights["model.layers.0.mlp.up_proj.weight"]
    assert len(weight.reshape(-1, 64)[0].unique()) > 16
    assert not torch.equal(weight, before["model.layers.0.mlp.up_proj.weight"])
    assert "quantization_config" not in json.loads((output / "config.json").read_text())


def nats(model: Any, folder: str, demonstrations: Path) -> float:
    """Cross-entropy of the assistant's tokens, from the text alone."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    total, count = 0.0, 0
    for line in demonstrations.read_text().splitlines():
        user, assistant = (message["content"] for message in json.loads(line)["messages"])
        prompt = tokenizer(f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
        answer = tokenizer(f"{assistant}<|im_end|>")["input_ids"]
        with torch.no_grad():
            logprobs = model(torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
        total -= float(logprobs[len(prompt) - 1 : -1].gather(-1, torch.tensor(answer)[:, None]).sum())
        count += len(answer)
    return total / count


@pytest.mark.slow
def test_four_bits_cost_less_after_it(wide: Artifact, make_context: MakeContext, tmp_path: Path) -> None:
    """From one start, as many steps with and without rounding: the first is better once both are rounded by hand,
    and loses less by it."""
    start = artifact_of("start", "model", trained(make_context, tmp_path / "start", {"base": wide}, SFT)[1])
    found = {}
    for name, more in (("plain", {}), ("aware", {"qat": "q4_1"})):
        settings = SFT | {"model": "start", "epochs": 12, "learning_rate": 3e-4} | more
        folder = tmp_path / name
        _result, output = trained(make_context, folder, {"base": wide, "start": start}, settings)
        whole = AutoModelForCausalLM.from_pretrained(output).eval()
        demonstrations = folder / "demonstrations.jsonl"
        both = [nats(model, str(output), demonstrations) for model in (whole, rounded(output, four_bits(32)))]
        found[name] = (both[1], both[1] - both[0])
    assert found["aware"][0] < found["plain"][0]
    assert found["aware"][1] < found["plain"][1]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"qat": "int4"}, "qat=int4 rounds weights that are trained, and lora keeps them"),
        ({"qat": "int4", "lora": None, "adapter": {"kind": "layers", "last": 1}}, "and layers keeps them"),
        ({"qat": "nf4", "lora": None}, "no fake quantiser rounds as nf4 does"),
        ({"qat": "q4_0", "lora": None}, "no fake quantiser rounds as q4_0 does"),
    ],
)
def test_what_cannot_be_rounded_is_refused_in_a_line(settings: dict[str, Any], words: str) -> None:
    for kind in ({"kind": "sft"}, {"kind": "dpo", "model": "base", "preferences": "p"}):
        with pytest.raises(ValidationError) as caught:
            (SftStage if kind["kind"] == "sft" else DpoStage).model_validate({**kind, **settings})
        [error] = caught.value.errors()
        assert words in error["msg"]
        assert "\n" not in error["msg"]


def test_rows_that_make_no_groups_are_refused(base: Artifact) -> None:
    """The tiny model's rows have 48 weights."""
    with pytest.raises(
        StageError, match=r"qat=int4 rounds groups of weights, and rows here have \[48, 96\]: take int8"
    ):
        fake_quantise(AutoModelForCausalLM.from_pretrained(base.path), "int4")
