"""DPO on the tiny model: its loss against the formula, with the SFT adapter as the reference."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alignment.data.jsonl import read_records, write_records
from alignment.durable_files import folder_digest
from alignment.errors import StageError
from alignment.models.load import load_policy
from alignment.records import Artifact, PreferencePair
from alignment.stage import StageContext
from alignment.stages.dpo import run

MakeContext = Callable[..., StageContext]
WHOLE_BATCH = {"epochs": 1, "batch_size": 24, "learning_rate": 1e-2, "warmup": 0, "schedule": "constant", "beta": 0.3}


def train(context: StageContext) -> Any:
    return run(context.recipe.stages[context.name], context)  # type: ignore[arg-type]


def curve(folder: Path, name: str = "loss") -> list[float]:
    return [value for _step, value in json.loads((folder / "curves.json").read_text())[name]]


def answer_logprobs(artifact: Artifact, base: Artifact, context: StageContext) -> list[tuple[float, float]]:
    """log π(chosen | prompt) and log π(rejected | prompt) of every pair, EOS included, from the text alone."""
    model, tokenizer = load_policy(artifact, base, context.run)
    pairs = read_records(Path(context.inputs["preferences"].path) / "pairs.jsonl", PreferencePair)

    def logprob(pair: PreferencePair, answer: str) -> float:
        before = f"<|im_start|>user\n{pair.prompt[0].content}<|im_end|>\n<|im_start|>assistant\n"
        prompt = tokenizer(before, add_special_tokens=False)["input_ids"]
        tokens = tokenizer(f"{answer}<|im_end|>", add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            logprobs = model(input_ids=torch.tensor([prompt + tokens])).logits[0].double().log_softmax(-1)
        return sum(float(logprobs[len(prompt) + i - 1, token]) for i, token in enumerate(tokens))

    return [(logprob(pair, pair.chosen), logprob(pair, pair.rejected)) for pair in pairs]


def dpo_loss(policy: list[tuple[float, float]], reference: list[tuple[float, float]], beta: float) -> float:
    """Rafailov et al. 2023, eq. 7."""
    margins = [(p[0] - r[0]) - (p[1] - r[1]) for p, r in zip(policy, reference, strict=True)]
    return sum(math.log1p(math.exp(-beta * margin)) for margin in margins) / len(margins)


@pytest.fixture(scope="module")
def one_step(
    base: Artifact, sft: Artifact, preferences: Artifact, make_context: MakeContext, tmp_path_factory: Any
) -> StageContext:
    """One optimizer step on all pairs at once, from the SFT adapter."""
    inputs = {"base": base, "sft": sft, "preferences": preferences}
    context = make_context(tmp_path_factory.mktemp("dpo"), "dpo", inputs, settings=WHOLE_BATCH)
    train(context)
    return context


def policy_of(context: StageContext) -> Artifact:
    folder = context.output
    return Artifact(name="dpo", kind="model", version=1, digest=folder_digest(folder), path=str(folder), key="dpo")


def test_the_first_loss_is_log_2(one_step: StageContext) -> None:
    assert curve(one_step.output)[0] == pytest.approx(math.log(2), abs=1e-5)
    assert curve(one_step.output, "rewards/margins")[0] == pytest.approx(0, abs=1e-4)


def test_the_reference_is_the_sft_adapter(
    one_step: StageContext, base: Artifact, sft: Artifact, make_context: MakeContext, tmp_path: Path
) -> None:
    """The second step's loss is the formula's, with the policy after one step and SFT's adapter as reference."""
    again = make_context(tmp_path, "dpo", one_step.inputs, settings=WHOLE_BATCH | {"epochs": 2})
    train(again)
    first, second = curve(again.output)
    assert first == pytest.approx(math.log(2), abs=1e-5)
    policy = answer_logprobs(policy_of(one_step), base, one_step)
    reference = answer_logprobs(sft, base, one_step)
    assert second == pytest.approx(dpo_loss(policy, reference, WHOLE_BATCH["beta"]), abs=1e-3)
    wrong = dpo_loss(policy, answer_logprobs(base, base, one_step), WHOLE_BATCH["beta"])
    assert abs(wrong - second) > 0.05  # the base as reference would show
    assert second < first - 0.01


def test_the_saved_policy_is_one_adapter(one_step: StageContext, sft: Artifact) -> None:
    names = sorted(path.relative_to(one_step.output).as_posix() for path in one_step.output.rglob("*"))
    assert "adapter_model.safetensors" in names
    assert not [name for name in names if name.startswith("ref")]  # the reference is not part of it
    before, after = ((Path(a.path) / "adapter_model.safetensors").read_bytes() for a in (sft, policy_of(one_step)))
    assert before != after


def test_a_fresh_adapter_has_the_base_as_reference(
    base: Artifact, preferences: Artifact, make_context: MakeContext, tmp_path: Path
) -> None:
    inputs = {"base": base, "preferences": preferences}
    context = make_context(tmp_path, "dpo", inputs, settings=WHOLE_BATCH | {"model": "base", "epochs": 2})
    train(context)
    assert curve(context.output)[0] == pytest.approx(math.log(2), abs=1e-5)
    assert curve(context.output)[1] < math.log(2)


def test_whole_weights_from_whole_weights(
    base: Artifact, preferences: Artifact, make_context: MakeContext, tmp_path: Path
) -> None:
    inputs = {"base": base, "preferences": preferences}
    settings = WHOLE_BATCH | {"model": "base", "epochs": 2, "lora": None, "learning_rate": 1e-3}
    context = make_context(tmp_path, "dpo", inputs, settings=settings)
    train(context)
    assert not (context.output / "adapter_config.json").exists()
    assert curve(context.output)[0] == pytest.approx(math.log(2), abs=1e-5)
    policy = answer_logprobs(policy_of(context), base, context)
    reference = answer_logprobs(base, base, context)
    assert dpo_loss(policy, reference, WHOLE_BATCH["beta"]) < curve(context.output)[1]  # still going down


@pytest.mark.parametrize("loss", ["hinge", "ipo", "robust", "apo_zero", "sigmoid_norm"])
def test_other_losses_train(one_step: StageContext, make_context: MakeContext, tmp_path: Path, loss: str) -> None:
    settings = WHOLE_BATCH | {"epochs": 3, "loss": loss, "label_smoothing": 0.1 if loss == "robust" else 0.0}
    context = make_context(tmp_path, "dpo", one_step.inputs, settings=settings)
    train(context)
    losses = curve(context.output)
    assert losses[-1] < losses[0]
    assert curve(context.output, "rewards/accuracies")[-1] > 0.5


def test_pairs_that_leave_no_room_for_an_answer_are_counted(
    one_step: StageContext, make_context: MakeContext, tmp_path: Path
) -> None:
    folder = tmp_path / "pairs"
    folder.mkdir()
    pairs = read_records(Path(one_step.inputs["preferences"].path) / "pairs.jsonl", PreferencePair)
    long = pairs[0].prompt[0].model_copy(update={"content": "the cat " * 60})
    write_records(folder / "pairs.jsonl", [*pairs[:7], pairs[7].model_copy(update={"prompt": (long,)})])
    inputs = {**one_step.inputs, "preferences": one_step.inputs["preferences"].model_copy(update={"path": str(folder)})}
    result = train(make_context(tmp_path / "some", "dpo", inputs, settings=WHOLE_BATCH))
    assert (result.metrics["pairs"], result.metrics["dropped"]) == (7.0, 1.0)
    with pytest.raises(StageError, match="every prompt alone fills max_length=4 tokens"):
        train(make_context(tmp_path / "none", "dpo", inputs, settings=WHOLE_BATCH | {"max_length": 4}))


def test_snapshots_are_models_and_the_last_is_the_end(
    one_step: StageContext, base: Artifact, make_context: MakeContext, tmp_path: Path
) -> None:
    from alignment.training.snapshots import snapshots_of

    settings = WHOLE_BATCH | {"epochs": 2, "snapshot_every": 1}
    again = make_context(tmp_path, "dpo", one_step.inputs, settings=settings)
    train(again)
    found = dict(snapshots_of(policy_of(again)))
    assert list(found) == [1, 2]

    def weights(folder: str | Path) -> bytes:
        return (Path(folder) / "adapter_model.safetensors").read_bytes()

    assert weights(found[1].path) == weights(one_step.output)  # two steps, and one: the first is the same
    assert weights(found[2].path) == weights(again.output)
    load_policy(found[1], base, again.run)
