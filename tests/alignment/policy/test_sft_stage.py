"""SFT on the tiny model: what is learned, against an independent computation of the loss."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignment.errors import StageError
from alignment.records import Artifact
from alignment.stage import StageContext
from alignment.stages.sft import run

MakeContext = Callable[..., StageContext]
ONE_STEP = {"epochs": 1, "batch_size": 12, "learning_rate": 1e-3, "warmup": 0, "schedule": "constant"}


def losses(folder: Path) -> list[float]:
    return [value for _step, value in json.loads((folder / "curves.json").read_text())["loss"]]


def train(context: StageContext) -> Any:
    return run(context.recipe.stages[context.name], context)  # type: ignore[arg-type]


def expected_loss(model_folder: str, demonstrations: Path) -> float:
    """Mean negative log-likelihood of the answers and their EOS, token by token, from the text alone."""
    model = AutoModelForCausalLM.from_pretrained(model_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    total, count = 0.0, 0
    for line in demonstrations.read_text().splitlines():
        user, assistant = (message["content"] for message in json.loads(line)["messages"])
        before = f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
        prompt = tokenizer(before, add_special_tokens=False)["input_ids"]
        answer = tokenizer(f"{assistant}<|im_end|>", add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            logprobs = model(input_ids=torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
        for place, token in enumerate(answer, start=len(prompt)):
            total -= float(logprobs[place - 1, token])
            count += 1
    return total / count


def test_the_loss_is_of_the_assistants_tokens_only(base: Artifact, make_context: MakeContext, tmp_path: Path) -> None:
    context = make_context(tmp_path, "sft", {"base": base}, settings=ONE_STEP)
    result = train(context)
    [first] = losses(context.output)
    assert first == pytest.approx(expected_loss(base.path, context.data["demonstrations"]), abs=1e-4)
    assert result.metrics["mean_loss"] == pytest.approx(first)
    assert result.metrics["demonstrations"] == 12.0
    assert result.tokens_trained > 0


def test_demonstrations_that_a_stage_made(base: Artifact, make_context: MakeContext, tmp_path: Path) -> None:
    """The recipe's own file is not among such a stage's data, and is not read."""
    made = tmp_path / "revisions"
    made.mkdir()
    own = {"messages": [{"role": "user", "content": "Who saw it?"}, {"role": "assistant", "content": "The owl."}]}
    (made / "demonstrations.jsonl").write_text(json.dumps(own) + "\n")
    revisions = Artifact(name="revisions", kind="constitution", version=1, digest="1", path=str(made), key="1")
    settings = ONE_STEP | {"demonstrations": "revisions"}
    context = make_context(tmp_path, "sft", {"base": base, "revisions": revisions}, settings=settings)
    del context.data["demonstrations"]  # type: ignore[attr-defined]
    result = train(context)
    assert result.metrics["demonstrations"] == 1.0
    assert losses(context.output)[0] == pytest.approx(expected_loss(base.path, made / "demonstrations.jsonl"), abs=1e-4)


def test_the_loss_is_right_where_padding_is_eos(
    make_model: Callable[..., Path], make_context: MakeContext, tmp_path: Path
) -> None:
    """The trap: padding masked by its id would mask EOS as well, and the model would never learn to stop."""
    folder = make_model(tmp_path / "model", pad=None)
    base = Artifact(name="base", kind="model", version=1, digest="0", path=str(folder), key=str(folder))
    context = make_context(tmp_path, "sft", {"base": base}, settings=ONE_STEP)
    train(context)
    assert losses(context.output)[0] == pytest.approx(
        expected_loss(base.path, context.data["demonstrations"]), abs=1e-4
    )


def test_accumulated_batches_weigh_every_token_alike(base: Artifact, make_context: MakeContext, tmp_path: Path) -> None:
    """The mean over tokens, not the mean of the batches' means."""
    settings = ONE_STEP | {"batch_size": 3, "gradient_accumulation": 4}
    context = make_context(tmp_path, "sft", {"base": base}, settings=settings)
    train(context)
    [first] = losses(context.output)
    assert first == pytest.approx(expected_loss(base.path, context.data["demonstrations"]), abs=1e-4)


def test_packing_changes_no_loss_and_saves_rows(base: Artifact, make_context: MakeContext, tmp_path: Path) -> None:
    plain = make_context(tmp_path / "plain", "sft", {"base": base}, settings=ONE_STEP | {"epochs": 2})
    packed = make_context(
        tmp_path / "packed", "sft", {"base": base}, settings=ONE_STEP | {"epochs": 2, "packing": True}
    )
    train(plain)
    train(packed)
    assert losses(packed.output) == pytest.approx(losses(plain.output), abs=2e-4)
    assert losses(plain.output)[1] < losses(plain.output)[0]  # the second step saw the first one's weights


def test_packing_puts_several_demonstrations_into_a_row(
    base: Artifact, make_context: MakeContext, tmp_path: Path
) -> None:
    context = make_context(tmp_path, "sft", {"base": base}, settings=ONE_STEP | {"packing": True, "batch_size": 1})
    result = train(context)
    assert 1 <= len(result.curves["loss"]) < 12


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_bits_whatever_was_drawn_before(
    make_model: Callable[..., Path], make_context: MakeContext, tmp_path: Path, dtype: str
) -> None:
    """An adapter's first weights are random: their seed must be the recipe's, not the process's history."""
    from alignment.durable_files import folder_digest

    folder = make_model(tmp_path / "model", dtype=dtype)
    base = Artifact(name="base", kind="model", version=1, digest="0", path=str(folder), key="tiny")
    digests = []
    for number in range(2):
        torch.manual_seed(100 + number)
        context = make_context(tmp_path / str(number), "sft", {"base": base}, changes={"model.dtype": dtype})
        train(context)
        digests.append(folder_digest(context.output))
    assert digests[0] == digests[1]
    other = make_context(tmp_path / "other", "sft", {"base": base}, changes={"model.dtype": dtype, "seed": 6})
    train(other)
    assert folder_digest(other.output) != digests[0]


def test_all_weights_train_without_lora(base: Artifact, make_context: MakeContext, tmp_path: Path) -> None:
    context = make_context(tmp_path, "sft", {"base": base}, settings=ONE_STEP | {"lora": None})
    train(context)
    assert not (context.output / "adapter_config.json").exists()
    before = AutoModelForCausalLM.from_pretrained(base.path).state_dict()
    after = AutoModelForCausalLM.from_pretrained(str(context.output)).state_dict()
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert changed == set(before)


def test_a_loss_that_is_not_a_number_stops_the_stage(base: Artifact, make_context: MakeContext, tmp_path: Path) -> None:
    settings = {"learning_rate": 1e30, "warmup": 0, "max_grad_norm": 1e30}
    context = make_context(tmp_path, "sft", {"base": base}, settings=settings)
    with pytest.raises(FloatingPointError, match=r"sft: the loss at step \d+ is (nan|inf); lower the learning rate"):
        train(context)


def test_nothing_within_max_length_is_said(base: Artifact, make_context: MakeContext, tmp_path: Path) -> None:
    context = make_context(tmp_path, "sft", {"base": base}, settings={"max_length": 8})
    with pytest.raises(StageError, match="no demonstration has an answer within max_length=8"):
        train(context)


def test_progress_ends_at_its_end(base: Artifact, make_context: MakeContext, tmp_path: Path) -> None:
    heard = []
    context = make_context(tmp_path, "sft", {"base": base}, settings={"epochs": 1}, report=heard.append)
    train(context)
    assert [progress.step for progress in heard] == [1, 2, 3]
    assert {progress.total for progress in heard} == {3}
    assert all(math.isfinite(progress.metrics["loss"]) for progress in heard)
    assert heard[0].tokens < heard[-1].tokens
    assert context.work_seconds > 0
