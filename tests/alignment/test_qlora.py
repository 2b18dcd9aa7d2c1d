"""Adapters on a base in fewer bits: what is computed, what is trained, what is merged, and what is refused."""

import json
import math
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig

from alignment.checks.adapters.quantised_base import adapters_only_faults, held_base_faults
from alignment.durable_files import folder_digest
from alignment.errors import StageError
from alignment.models import quantised
from alignment.models.adapters import add_lora
from alignment.models.base_model import prepare_base
from alignment.models.export import export_merged
from alignment.models.load import load_policy
from alignment.models.quantised import weight_bytes
from alignment.plan.sizes import model_size
from alignment.recipe.base import Lora
from alignment.recipe.recipe import Recipe
from alignment.recipe.run_settings import ModelSettings
from alignment.records import Artifact
from alignment.stage import Progress, StageContext
from alignment.workspace import Workspace
from tests.alignment.conftest import MODULES, artifact_of, curve
from tests.tiny_families import config

pytest.importorskip("bitsandbytes")
MakeContext = Callable[..., StageContext]
LORA = {"rank": 4, "alpha": 8}
SFT = {"lora": LORA, "epochs": 1, "batch_size": 4, "checkpoint_every": 1}
IDS = torch.tensor([[5, 9, 14, 3, 22, 7]])
# Dettmers et al. 2023, appendix E: the 16 values of 4-bit NormalFloat.
NF4 = torch.tensor([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
])  # fmt: skip


DORA = {"sft": {"kind": "sft", "lora": {"dora": True}}}


class Died(BaseException):
    """Ends a stage in the middle."""


def rounded(weight: torch.Tensor) -> torch.Tensor:
    """A weight in nf4: the nearest of 16 values times the largest of each 64 weights."""
    blocks = weight.reshape(-1, 64)
    largest = blocks.abs().amax(dim=1, keepdim=True)
    nearest = ((blocks / largest)[..., None] - NF4).abs().argmin(dim=-1)
    return (NF4[nearest] * largest).reshape(weight.shape)


def held_by_hand(base: Artifact, context: StageContext) -> Any:
    """The base with the numbers that its bits stand for. int8: whole 127ths of the largest of a row, as they are held;
    which of two a weight between them goes to is bitsandbytes' matter, who read it as float16."""
    model = AutoModelForCausalLM.from_pretrained(base.path).eval()
    held = load_policy(base, base, context.run)[0]
    for name, weight in model.named_parameters():
        if "proj" in name and context.run.model.quantise == "nf4":
            weight.data = rounded(weight.data)
        elif "proj" in name:
            step = weight.data.half().float().abs().amax(dim=1, keepdim=True) / 127
            whole = held.get_parameter(name).data
            assert whole.dtype == torch.int8
            assert ((whole * step - weight.data).abs() <= 0.6 * step).all()
            weight.data = whole * step
    return model


def run(context: StageContext) -> Any:
    stage = context.recipe.stages[context.name]  # type: ignore[attr-defined]
    return import_module(MODULES[stage.kind]).run(stage, context)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(IDS).logits
        return found


@pytest.fixture(scope="module")
def wide(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The tiny model's tokenizer on a model whose rows are whole blocks of 64."""
    folder = tmp_path_factory.mktemp("wide") / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "model.safetensors").unlink()
    shape = json.loads((folder / "config.json").read_text()) | {"hidden_size": 64, "intermediate_size": 128}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    torch.manual_seed(4)
    AutoModelForCausalLM.from_config(LlamaConfig(**shape)).save_pretrained(folder)
    return prepare_base(Workspace(tmp_path_factory.mktemp("space")), ModelSettings(base=str(folder)))


@pytest.fixture(scope="module", params=["nf4", "int8"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def trained(
    scheme: str, wide: Artifact, make_context: MakeContext, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Artifact, StageContext]:
    context = make_context(
        tmp_path_factory.mktemp("sft"), "sft", {"base": wide}, settings=SFT, changes={"model.quantise": scheme}
    )
    run(context)
    return artifact_of("sft", "model", context.output, {"base": wide}), context


def test_the_base_is_what_the_scheme_makes_of_it(scheme: str, wide: Artifact, trained: Any) -> None:
    """nf4's products are plain; int8's round their inputs to 127ths as well."""
    bound = 1e-4 if scheme == "nf4" else 0.1
    found = load_policy(wide, wide, trained[1].run)[0]
    by_hand = logits(held_by_hand(wide, trained[1]))
    torch.testing.assert_close(logits(found), by_hand, atol=bound, rtol=bound)
    plain = load_policy(wide, wide, trained[1].run, plain=True)[0]
    torch.testing.assert_close(logits(plain), by_hand, atol=1e-4, rtol=1e-4)
    assert (logits(AutoModelForCausalLM.from_pretrained(wide.path)) - logits(plain)).abs().max() > 1e-3


def test_the_plan_knows_what_it_takes(scheme: str, wide: Artifact, trained: Any) -> None:
    found = weight_bytes(load_policy(wide, wide, trained[1].run)[0])
    size = model_size(AutoModelForCausalLM.from_pretrained(wide.path).config)
    assert found == pytest.approx(4 * size.parameters - size.saved(scheme, 4), rel=0.02)


@pytest.mark.parametrize("kind", [Lora(rank=4, alpha=8), Lora(rank=4, alpha=8, dora=True)], ids=["lora", "dora"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_pass_through_it_after_any_pass_without_them(
    dtype: str, kind: Lora, wide: Artifact, trained: Any
) -> None:
    """As in PPO and GRPO, which read with an evaluated model before they train it. int8's are rounded on the way."""
    run_settings = trained[1].run
    if kind.dora and run_settings.model.quantise == "int8":
        assert "8-bit weights cannot be copied" in faults(model={"quantise": "int8"}, stages=DORA)[0]
        return
    run_settings = run_settings.model_copy(update={"model": run_settings.model.model_copy(update={"dtype": dtype})})
    gradients = []
    for plain in (False, True):
        torch.manual_seed(1)
        policy = add_lora(load_policy(wide, wide, run_settings, plain=plain)[0], kind).eval()
        for name, weight in policy.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                weight.data = 0.1 * torch.randn(weight.shape)
                assert weight.dtype == torch.float32
        with torch.no_grad():
            policy(IDS)
        policy(IDS, labels=IDS).loss.backward()
        gradients.append({n: p.grad.float() for n, p in policy.named_parameters() if p.grad is not None})
    bound = 1e-4 if run_settings.model.quantise == "nf4" and dtype == "float32" else 0.15
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert (gradient - gradients[1][name]).norm() <= bound * gradients[1][name].norm() + 1e-6, name


def test_it_is_saved_loaded_and_merged(scheme: str, wide: Artifact, trained: Any, tmp_path: Path) -> None:
    artifact, context = trained
    assert json.loads((Path(artifact.path) / "base.json").read_text())["quantise"] == scheme
    weights = load_file(Path(artifact.path) / "adapter_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert any(weight.ne(weight.bfloat16().float()).any() for weight in weights.values())  # none was bfloat16 once
    expected = logits(load_policy(artifact, wide, context.run)[0])
    export_merged(artifact, wide, context.run, tmp_path / "merged")
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    bound = 1e-4 if scheme == "nf4" else 5e-2
    torch.testing.assert_close(logits(merged), expected, atol=bound, rtol=bound)
    by_hand = held_by_hand(wide, context)
    for name, weight in merged.named_parameters():  # W + s·BA on the numbers that the scheme keeps
        key = f"base_model.model.{name.removesuffix('.weight')}"
        wanted = by_hand.get_parameter(name).data
        if f"{key}.lora_A.weight" in weights:
            wanted = wanted + 2.0 * weights[f"{key}.lora_B.weight"] @ weights[f"{key}.lora_A.weight"]
        torch.testing.assert_close(weight.data, wanted, atol=1e-5, rtol=1e-3)


def test_a_death_changes_nothing(
    scheme: str, wide: Artifact, trained: Any, make_context: MakeContext, tmp_path: Path
) -> None:
    def report(progress: Progress) -> None:
        if progress.step == 2:
            raise Died

    for reporting in (report, lambda _progress: None):
        shutil.rmtree(tmp_path / "output", ignore_errors=True)
        context = make_context(
            tmp_path, "sft", {"base": wide}, settings=SFT, changes={"model.quantise": scheme}, report=reporting
        )
        try:
            run(context)
        except Died:
            assert list(context.checkpoints.glob("checkpoint-*"))
    assert folder_digest(tmp_path / "output") == folder_digest(Path(trained[0].path))


SHORT = {"steps": 2, "episodes": 8, "batch_size": 4, "learning_rate": 1e-3, "warmup": 0.0,
         "rewards": [{"kind": "length_penalty", "unit": "characters", "free": 2, "full": 20}],
         "sampling": {"max_new_tokens": 4}}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "own"),
    [
        ("dpo", {"model": "sft", "epochs": 1}),
        ("dpo", {"model": "base", "epochs": 1, "lora": LORA}),
        ("grpo", {**SHORT, "model": "sft", "per_prompt": 2, "beta": 0.1}),
        ("ppo", {**SHORT, "model": "base", "lora": LORA}),
    ],
)
def test_a_stage_on_top_starts_from_its_reference(
    kind: str, own: dict[str, Any], scheme: str, wide: Artifact, trained: Any, preferences: Artifact,
    make_context: MakeContext, tmp_path: Path,
) -> None:  # fmt: skip
    inputs = {"base": wide, "sft": trained[0], "preferences": preferences}
    context = make_context(tmp_path, kind, inputs, settings={"kind": kind, **own}, changes={"model.quantise": scheme})
    result = run(context)
    if kind == "dpo":
        assert curve(context.output)[0] == pytest.approx(math.log(2), abs=1e-5)
    else:
        assert result.curves["kl"][0][1] == pytest.approx(0, abs=1e-4)
    found = artifact_of("next", "model", context.output, {"base": wide})
    policy, _tokenizer = load_policy(found, wide, context.run)
    start = load_policy(inputs[own["model"]], wide, context.run)[0]
    assert (logits(policy) - logits(start)).abs().max() > 1e-5


def test_a_reward_model_is_on_the_plain_numbers(
    scheme: str, wide: Artifact, trained: Any, preferences: Artifact, make_context: MakeContext, tmp_path: Path
) -> None:
    inputs = {"base": wide, "sft": trained[0], "preferences": preferences}
    settings = {"lora": LORA, "epochs": 1}
    context = make_context(tmp_path, "reward", inputs, settings=settings, changes={"model.quantise": scheme})
    run(context)
    assert "quantization_config" not in json.loads((context.output / "config.json").read_text())
    assert curve(context.output)[0] == pytest.approx(math.log(2), abs=1e-5)


def test_the_same_base_in_other_bits_is_another_base(scheme: str, wide: Artifact, trained: Any) -> None:
    artifact, context = trained
    plain = context.run.model_copy(update={"model": context.run.model.model_copy(update={"quantise": None})})
    with pytest.raises(StageError, match=f"was trained on the base in {scheme}, and model.quantise is null: set it"):
        load_policy(artifact, wide, plain)


def faults(shape: Any = None, model: dict[str, Any] | None = None, **values: Any) -> list[str]:
    values = {"name": "test", "model": {"base": "x", "quantise": "nf4"} | (model or {})} | values
    recipe = Recipe.model_validate({"stages": {"sft": {"kind": "sft"}}} | values)
    shape = shape or LlamaConfig(hidden_size=64, intermediate_size=128, num_attention_heads=4)
    return [str(fault) for fault in (*adapters_only_faults(recipe), *held_base_faults(recipe, shape))]


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert faults() == []
    assert faults(stages={"sft": {"kind": "sft", "lora": None}}) == [
        "stages.sft.lora: a quantised base cannot train all weights, and model.quantise is nf4; "
        "set lora, or model.quantise to null"
    ]
    stages = {"sft": {"kind": "sft"}, "small": {"kind": "distil", "teacher": "sft", "model": "sft", "layers": 0.5}}
    assert "cannot train all weights" in faults(stages=stages)[0]
    assert "the vLLM server holds the base in its own numbers" in faults(resources={"vllm": {"url": "http://a:1"}})[0]
    assert "fsdp shards plain numbers alone" in faults(resources={"workers": 2, "sharding": "fsdp"})[0]
    assert "leaves the experts of mixtral in plain numbers" in faults(config("mixtral"))[0]
    assert "rows of whole blocks of 64" in faults(LlamaConfig(hidden_size=96, num_attention_heads=4))[0]
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "bitsandbytes"}}))
    assert "the base is quantised already (bitsandbytes)" in faults(model={"base": str(tmp_path)})[0]
    monkeypatch.setattr(quantised.importlib.util, "find_spec", lambda _name: None)
    assert faults() == [
        "model.quantise: nf4 is bitsandbytes', which is not installed; run pip install 'rlhf-flows[compression]'"
    ]
