"""The reward model on the tiny model: where it starts, what it learns, and what it is measured on."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from alignment.data.jsonl import read_records
from alignment.durable_files import folder_digest
from alignment.models.reward_model import load_reward_model
from alignment.records import Artifact, PreferencePair
from alignment.stage import StageContext
from alignment.stages.reward import run

MakeContext = Callable[..., StageContext]
FAST = {"epochs": 3, "batch_size": 6, "learning_rate": 5e-3, "warmup": 0}


def train(context: StageContext) -> Any:
    return run(context.recipe.stages[context.name], context)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def inputs(base: Artifact, sft: Artifact, preferences: Artifact) -> dict[str, Artifact]:
    return {"base": base, "sft": sft, "preferences": preferences}


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def trained(
    inputs: dict[str, Artifact], make_context: MakeContext, request: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[StageContext, Any]:
    folder = tmp_path_factory.mktemp("reward")
    context = make_context(folder, "reward", inputs, settings=FAST, changes={"model.dtype": request.param})
    return context, train(context)


def test_the_first_loss_is_log_2(trained: tuple[StageContext, Any]) -> None:
    """The head starts at zero, so both answers score 0."""
    context, result = trained
    losses = [value for _step, value in json.loads((context.output / "curves.json").read_text())["loss"]]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses[-1] < 0.5
    assert result.metrics["loss"] < 0.5


def test_held_out_accuracy_is_of_the_saved_model_on_pairs_it_never_saw(trained: tuple[StageContext, Any]) -> None:
    context, result = trained
    folder = context.output
    saved = Artifact(name="reward", kind="reward_model", version=1, digest="0", path=str(folder), key="reward")
    model, tokenizer = load_reward_model(saved, context.run)
    pairs = read_records(Path(context.inputs["preferences"].path) / "pairs.jsonl", PreferencePair)

    def reward(pair: PreferencePair, answer: str) -> float:
        text = f"<|im_start|>user\n{pair.prompt[0].content}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>"
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            return float(model(input_ids=ids).logits)

    margins = {pair.id: reward(pair, pair.chosen) - reward(pair, pair.rejected) for pair in pairs}
    detail = json.loads((folder / "held_out.json").read_text())
    held = len(detail["margins"])
    assert held == result.metrics["held_out_pairs"]
    assert held + result.metrics["pairs"] == len(pairs)
    tolerance = 1e-4 if context.recipe.model.dtype == "float32" else 0.1
    everything = sorted(margins.values())
    for margin in detail["margins"]:  # each reported margin is one that the saved model gives
        assert min(abs(margin - known) for known in everything) < tolerance
    right = sum(margin > 0 for margin in detail["margins"]) / held
    assert result.metrics["accuracy"] == pytest.approx(right)
    assert result.metrics["accuracy.low"] < right <= result.metrics["accuracy.high"]
    assert right > 0.8  # short over long: easy


def test_the_reward_model_stands_alone(trained: tuple[StageContext, Any]) -> None:
    context, _result = trained
    files = {path.name for path in context.output.iterdir()}
    assert {"model.safetensors", "tokenizer.json", "chat_template.sha256", "held_out.json"} <= files
    assert not any("adapter" in name for name in files)


def test_margins_move_the_loss(inputs: dict[str, Artifact], make_context: MakeContext, tmp_path: Path) -> None:
    """With margins the first loss is the mean of log(1 + exp(margin)), for both answers score 0."""
    settings = FAST | {"epochs": 1, "batch_size": 24, "use_margin": True}
    context = make_context(tmp_path, "reward", inputs, settings=settings)
    result = train(context)
    pairs = read_records(Path(inputs["preferences"].path) / "pairs.jsonl", PreferencePair)
    first = result.curves["loss"][0][1]
    assert first > math.log(2)
    means = {round(math.log1p(math.exp(float(m))), 3) for m in range(4)}
    assert min(means) < first < max(means)
    assert result.metrics["pairs"] < len(pairs)


def test_the_same_bits_whatever_was_drawn_before(
    inputs: dict[str, Artifact], make_context: MakeContext, tmp_path: Path
) -> None:
    digests = []
    for number in range(2):
        torch.manual_seed(100 + number)
        context = make_context(tmp_path / str(number), "reward", inputs, settings=FAST | {"epochs": 1})
        train(context)
        digests.append(folder_digest(context.output))
    assert digests[0] == digests[1]


def test_a_fitted_head_knows_something_before_the_first_step(
    inputs: dict[str, Artifact], make_context: MakeContext, tmp_path: Path
) -> None:
    context = make_context(tmp_path, "reward", inputs, settings=FAST | {"head": "probe"})
    train(context)
    first = json.loads((context.output / "curves.json").read_text())["loss"][0][1]
    assert first < math.log(2) - 0.1


def test_the_saved_scores_are_the_calibrated_ones(
    inputs: dict[str, Artifact], make_context: MakeContext, tmp_path: Path
) -> None:
    details, results = [], []
    for calibrate in (False, True):
        context = make_context(tmp_path / str(calibrate), "reward", inputs, settings=FAST | {"calibrate": calibrate})
        results.append(train(context))
        details.append(json.loads((context.output / "held_out.json").read_text()))
        weight = load_file(context.output / "model.safetensors")["score.weight"]
        results[-1] = (results[-1], weight)
    (plain, head), (scaled, head_scaled) = results
    temperature = scaled.metrics["temperature"]
    assert temperature != 1
    assert torch.allclose(head_scaled * temperature, head, rtol=1e-5)
    assert np.allclose(np.array(details[1]["margins"]) * temperature, details[0]["margins"], rtol=1e-4, atol=1e-5)
    assert scaled.metrics["accuracy"] == plain.metrics["accuracy"]
