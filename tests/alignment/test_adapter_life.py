"""An adapter's whole life: trained, killed, resumed, saved, loaded, merged, and what stands on top of it."""

import json
import math
import shutil
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from alignment.durable_files import folder_digest
from alignment.models.export import export_merged
from alignment.models.load import load_policy
from alignment.models.reward_model import load_reward_model, score
from alignment.records import Artifact
from alignment.stage import Progress, StageContext
from tests.alignment.conftest import MODULES, artifact_of, curve

MakeContext = Callable[..., StageContext]
KIND = {"rank": 4, "alpha": 8, "targets": ["q_proj", "v_proj", "mlp.down_proj"], "rank_stabilised": True, "dora": True}
SFT = {"lora": KIND, "epochs": 1, "batch_size": 4, "checkpoint_every": 1}
SHORT = {"model": "sft", "steps": 2, "episodes": 8, "batch_size": 4, "learning_rate": 1e-3, "warmup": 0.0,
         "rewards": [{"kind": "length_penalty", "unit": "characters", "free": 2, "full": 20}],
         "sampling": {"max_new_tokens": 4}}  # fmt: skip
IDS = torch.tensor([[5, 9, 14, 3, 22, 7]])


class Died(BaseException):
    """Ends a stage in the middle."""


def run(context: StageContext) -> Any:
    return import_module(MODULES[context.recipe.stages[context.name].kind]).run(  # type: ignore[attr-defined]
        context.recipe.stages[context.name],
        context,  # type: ignore[attr-defined]
    )


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(IDS).logits
        return found


@pytest.fixture(scope="module")
def trained(base: Artifact, make_context: MakeContext, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    context = make_context(tmp_path_factory.mktemp("sft"), "sft", {"base": base}, settings=SFT)
    run(context)
    return artifact_of("sft", "model", context.output, {"base": base})


@pytest.fixture(scope="module")
def context(
    base: Artifact, trained: Artifact, preferences: Artifact, make_context: MakeContext, tmp_path_factory: Any
) -> StageContext:
    """A stage's context, for what loads."""
    inputs = {"base": base, "sft": trained, "preferences": preferences}
    return make_context(tmp_path_factory.mktemp("any"), "dpo", inputs)


def test_its_files_say_what_it_is(trained: Artifact) -> None:
    config = json.loads((Path(trained.path) / "adapter_config.json").read_text())
    assert (config["use_dora"], config["use_rslora"], config["r"], config["lora_alpha"]) == (True, True, 4, 8)
    with safe_open(Path(trained.path) / "adapter_model.safetensors", "pt") as file:
        names = list(file.keys())
    layers = {name.split("layers.")[1].rsplit(".lora", 1)[0] for name in names}
    assert {layer.partition(".")[2] for layer in layers} == {"self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"}
    assert sum("lora_magnitude_vector" in name for name in names) == len(layers) == len(names) / 3


def test_it_is_loaded_and_merged_as_it_was_trained(
    base: Artifact, trained: Artifact, context: StageContext, tmp_path: Path
) -> None:
    ours, _tokenizer = load_policy(trained, base, context.run)
    expected = logits(ours)
    assert (expected - logits(load_policy(base, base, context.run)[0])).abs().max() > 1e-2
    shutil.copytree(trained.path, tmp_path / "bare")
    torch.testing.assert_close(logits(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "bare")), expected)
    export_merged(trained, base, context.run, tmp_path / "merged")
    merged = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    torch.testing.assert_close(merged, expected, atol=2e-5, rtol=1e-4)


def test_a_death_changes_nothing(base: Artifact, trained: Artifact, make_context: MakeContext, tmp_path: Path) -> None:
    def report(progress: Progress) -> None:
        if progress.step == 2:
            raise Died

    for reporting in (report, lambda _progress: None):
        shutil.rmtree(tmp_path / "output", ignore_errors=True)
        context = make_context(tmp_path, "sft", {"base": base}, settings=SFT, report=reporting)
        try:
            run(context)
        except Died:
            assert list(context.checkpoints.glob("checkpoint-*"))
    assert folder_digest(tmp_path / "output") == folder_digest(Path(trained.path))


@pytest.mark.parametrize("kind", ["dpo", "kto", "grpo", "ppo"])
def test_a_stage_on_top_trains_the_same_adapter(
    kind: str, base: Artifact, trained: Artifact, preferences: Artifact, make_context: MakeContext, tmp_path: Path
) -> None:
    """It starts from its reference: DPO's loss is ln 2, others' KL is 0. The base's weights stay as they were."""
    own: Mapping[str, Any] = {"dpo": {"epochs": 1}, "kto": {"model": "sft", "preferences": "preferences", "epochs": 1},
                              "grpo": SHORT | {"per_prompt": 2, "beta": 0.1}, "ppo": SHORT}[kind]  # fmt: skip
    inputs = {"base": base, "sft": trained, "preferences": preferences}
    context = make_context(tmp_path, kind, inputs, settings={"kind": kind, **own})
    result = run(context)
    if kind == "dpo":
        assert curve(context.output)[0] == pytest.approx(math.log(2), abs=1e-6)
    if kind in ("grpo", "ppo"):
        assert result.curves["kl"][0][1] == pytest.approx(0, abs=1e-5)
    before, after = (json.loads((Path(p) / "adapter_config.json").read_text()) for p in (trained.path, context.output))
    assert before == after
    found = artifact_of("next", "model", context.output, {"base": base})
    policy, _tokenizer = load_policy(found, base, context.run)
    changed = (logits(policy) - logits(load_policy(trained, base, context.run)[0])).abs().max()
    assert changed > 1e-4
    with policy.disable_adapter():  # type: ignore[operator]
        torch.testing.assert_close(logits(policy), logits(load_policy(base, base, context.run)[0]), atol=0, rtol=0)


def test_a_fresh_one_has_the_base_as_its_reference(base: Artifact, make_context: MakeContext, tmp_path: Path) -> None:
    settings = {"kind": "grpo", **SHORT, "model": "base", "per_prompt": 2, "beta": 0.1, "lora": KIND}
    context = make_context(tmp_path, "grpo", {"base": base}, settings=settings)
    assert run(context).curves["kl"][0][1] == pytest.approx(0, abs=1e-5)


def test_a_reward_model_on_top(
    base: Artifact, trained: Artifact, preferences: Artifact, make_context: MakeContext, tmp_path: Path
) -> None:
    """Merged and whole: its files alone give the scores that were measured when it was made."""
    inputs = {"base": base, "sft": trained, "preferences": preferences}
    context = make_context(tmp_path, "reward", inputs, settings={"lora": KIND, "epochs": 1})
    result = run(context)
    made = artifact_of("reward", "reward_model", context.output, {"base": base})
    model, tokenizer = load_reward_model(made, context.run)
    assert not any("lora" in name for name, _weight in model.named_parameters())
    assert len(set(score(model, tokenizer, [[5, 9, 14], [3, 22, 7]]))) == 2
    assert 0 <= result.metrics["accuracy"] <= 1
