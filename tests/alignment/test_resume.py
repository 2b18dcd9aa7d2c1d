"""A training stage that dies goes on from its last whole checkpoint, and leaves the same bits and figures."""

import json
import shutil
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from alignment.durable_files import folder_digest
from alignment.records import Artifact
from alignment.stage import Progress, StageContext
from alignment.training.checkpoints import COMPLETE, last_checkpoint, restore_adapter

MakeContext = Callable[..., StageContext]
MODULES = {"sft": "alignment.stages.sft", "dpo": "alignment.stages.dpo", "reward": "alignment.stages.reward"}
SETTINGS: Mapping[str, Any] = {"epochs": 2, "batch_size": 4, "checkpoint_every": 2}


class Died(BaseException):
    """Ends a stage in the middle."""


@pytest.fixture(scope="module")
def inputs(base: Artifact, sft: Artifact, preferences: Artifact) -> dict[str, Artifact]:
    return {"base": base, "sft": sft, "preferences": preferences}


def attempt(
    make_context: MakeContext, folder: Path, name: str, inputs: Mapping[str, Artifact], die_at: int | None = None
) -> tuple[Any, list[int]]:
    """Runs a stage as its runner does, output wiped first; returns its result and the steps that it did."""
    steps: list[int] = []

    def report(progress: Progress) -> None:
        steps.append(progress.step)
        if progress.step == die_at:
            raise Died

    shutil.rmtree(folder / "output", ignore_errors=True)
    context = make_context(folder, name, inputs, settings=SETTINGS, report=report)
    try:
        return import_module(MODULES[name]).run(context.recipe.stages[name], context), steps
    except Died:
        return None, steps


@pytest.fixture(scope="module", params=["sft", "dpo", "reward"])
def whole(
    request: pytest.FixtureRequest,
    inputs: dict[str, Artifact],
    make_context: MakeContext,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, Any, Path]:
    """A stage that nothing interrupted: its name, result and folder."""
    folder = tmp_path_factory.mktemp(request.param)
    result, steps = attempt(make_context, folder, request.param, inputs)
    assert steps[-1] > 5
    return request.param, result, folder


def test_two_deaths_change_nothing(
    whole: tuple[str, Any, Path], inputs: dict[str, Artifact], make_context: MakeContext, tmp_path: Path
) -> None:
    name, expected, folder = whole
    assert attempt(make_context, tmp_path, name, inputs, die_at=1) == (None, [1])  # before any checkpoint
    assert attempt(make_context, tmp_path, name, inputs, die_at=3)[1] == [1, 2, 3]
    assert attempt(make_context, tmp_path, name, inputs, die_at=5)[1] == [3, 4, 5]
    result, steps = attempt(make_context, tmp_path, name, inputs)
    assert steps[0] == 5
    assert folder_digest(tmp_path / "output") == folder_digest(folder / "output")
    assert result.metrics == expected.metrics
    assert result.curves == expected.curves
    assert result.tokens_trained == expected.tokens_trained > 0


def test_death_after_the_last_step(
    whole: tuple[str, Any, Path], inputs: dict[str, Artifact], make_context: MakeContext, tmp_path: Path
) -> None:
    name, expected, folder = whole
    shutil.copytree(folder / "checkpoints", tmp_path / "checkpoints")
    result, steps = attempt(make_context, tmp_path, name, inputs)
    assert steps == []  # nothing was left to train
    assert folder_digest(tmp_path / "output") == folder_digest(folder / "output")
    assert result.metrics == expected.metrics
    assert result.tokens_trained == expected.tokens_trained


def test_a_checkpoint_without_its_mark_is_not_resumed_from(
    whole: tuple[str, Any, Path], inputs: dict[str, Artifact], make_context: MakeContext, tmp_path: Path
) -> None:
    name, _expected, folder = whole
    attempt(make_context, tmp_path, name, inputs, die_at=5)
    [older, newer] = sorted((tmp_path / "checkpoints").glob("checkpoint-*"))
    assert (older.name, newer.name) == ("checkpoint-2", "checkpoint-4")
    (newer / COMPLETE).unlink()  # died while writing it: the state is there, the weights are half
    [weights] = list(newer.glob("*model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:100])
    _result, steps = attempt(make_context, tmp_path, name, inputs)
    assert steps[0] == 3
    assert folder_digest(tmp_path / "output") == folder_digest(folder / "output")


def test_the_last_checkpoint_is_the_newest_whole_one(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None
    for step, whole in ((8, True), (10, True), (12, False), (9, True)):
        path = tmp_path / f"checkpoint-{step}"
        path.mkdir()
        (path / "trainer_state.json").write_text(json.dumps({"log_history": []}))
        if whole:
            (path / COMPLETE).touch()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert not (tmp_path / "checkpoint-12").exists()


def test_the_trained_adapter_is_restored_where_another_lies_beside_it(tiny_model: Path, tmp_path: Path) -> None:
    """A reference adapter, as GRPO has one: transformers 5.17 loads that one alone, and says nothing."""
    config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config)
    model.add_adapter("ref", config)
    weights = {name: weight for name, weight in model.named_parameters() if "lora_B" in name}
    with torch.no_grad():
        for name, weight in weights.items():
            weight.fill_(1.0 if ".default." in name else 2.0)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "ref" / "adapter_model.safetensors").exists()
    with torch.no_grad():
        for weight in weights.values():
            weight.fill_(3.0)
    restore_adapter(model, tmp_path)
    for name, weight in weights.items():
        assert bool((weight == (1.0 if ".default." in name else 3.0)).all()), name
