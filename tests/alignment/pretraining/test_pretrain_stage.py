"""Pretraining on the tiny corpus: against a bare loop, in parts, resumed, isolated, measured."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from alignment.data.split import is_held_out
from alignment.durable_files import folder_digest
from alignment.errors import StageError
from alignment.records import Artifact
from alignment.stages.pretraining.pretrain import run
from tests.alignment.pretraining.conftest import SHAPE, MakeStage
from tests.contexts import RecipeContext


def train(context: RecipeContext) -> Any:
    assert context.recipe is not None
    return run(context.recipe.stages["pretrain"], context)  # type: ignore[arg-type]


def losses(context: RecipeContext) -> list[float]:
    return [value for _step, value in json.loads((context.output / "curves.json").read_text())["loss"]]


def tokens_of(documents: list[str], tokenizer: Artifact, *, held_out: bool = False) -> list[list[int]]:
    """The documents' tokens, an EOS after each, from the texts alone."""
    read = AutoTokenizer.from_pretrained(tokenizer.path)
    kept = [text for text in documents if is_held_out(text, 0.1) == held_out]
    return [[*read(text, add_special_tokens=False)["input_ids"], read.eos_token_id] for text in kept]


def bare_loop(
    rows: torch.Tensor, vocabulary: int, *, epochs: int, size: int, rate: float, warmup: float
) -> list[float]:
    """The same model, trained by torch alone: cosine with warm-up, AdamW, gradients clipped at 1."""
    torch.manual_seed(1)  # another beginning and another order than the stage's
    shape = {"hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, tie_word_embeddings=True, **shape))
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    vectors = [weight for weight in model.parameters() if weight.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95))
    steps = epochs * math.ceil(len(rows) / size)
    rising = math.ceil(warmup * steps)
    found: list[float] = []
    for _ in range(epochs):
        for batch in rows[torch.randperm(len(rows))].split(size):
            step = len(found)
            fall = 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
            for group in optimizer.param_groups:
                group["lr"] = rate * ((step + 1) / rising if step < rising else fall)
            logits = model(input_ids=batch).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            found.append(float(loss))
    return found


def test_the_loss_is_that_of_a_bare_loop(
    make_stage: MakeStage, tokenizer: Artifact, documents: list[str], tmp_path: Path
) -> None:
    """Within 2 %, over the last quarter of the steps: beginnings and orders differ."""
    context = make_stage(
        tmp_path, "pretrain", {"tokenizer": tokenizer}, settings={"epochs": 6, "checkpoint_every": 500}
    )
    result = train(context)
    flat = torch.tensor([token for document in tokens_of(documents, tokenizer) for token in document])
    rows = flat[: len(flat) // 64 * 64].view(-1, 64)
    assert result.metrics["tokens"] == rows.numel()
    assert result.metrics["tokens_left"] == len(flat) - rows.numel()
    size = len(AutoTokenizer.from_pretrained(tokenizer.path))
    bare = bare_loop(rows, size, epochs=6, size=4, rate=3e-3, warmup=0.02)
    ours = losses(context)
    assert len(ours) == len(bare)
    assert ours[0] == pytest.approx(math.log(size), rel=0.02)  # nothing is known yet
    last = len(bare) // 4
    assert sum(ours[-last:]) == pytest.approx(sum(bare[-last:]), rel=0.02)
    assert ours[-1] < 0.5 * ours[0]
    assert result.tokens_trained == 6 * rows.numel()


def test_the_held_out_perplexity_is_the_models_own(
    make_stage: MakeStage, tokenizer: Artifact, documents: list[str], tmp_path: Path
) -> None:
    """exp of the mean negative log-likelihood, row by row, from the saved folder and the texts alone."""
    context = make_stage(
        tmp_path, "pretrain", {"tokenizer": tokenizer}, settings={"evaluate_every": 5, "checkpoint_every": 500}
    )
    result = train(context)
    model = AutoModelForCausalLM.from_pretrained(context.output).eval()
    held_out = tokens_of(documents, tokenizer, held_out=True)
    flat = torch.tensor([token for document in held_out for token in document])
    total, count = 0.0, 0
    for row in flat.split(64):
        with torch.inference_mode():
            logprobs = model(input_ids=row[None]).logits[0, :-1].double().log_softmax(-1)
        total -= float(logprobs.gather(-1, row[1:, None]).sum())
        count += len(row) - 1
    assert result.metrics["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-4)
    assert result.metrics["perplexity.low"] < result.metrics["perplexity"] < result.metrics["perplexity.high"]
    size = sum(len(text.encode()) for text in documents if is_held_out(text, 0.1))
    assert result.metrics["bits_per_byte"] == pytest.approx(total / math.log(2) / size, rel=1e-4)
    curve = result.curves["held_out_perplexity"]
    assert [step for step, _value in curve] == list(range(5, len(losses(context)) + 1, 5))
    assert curve[-1][1] < curve[0][1]


class StoppedError(Exception):
    """The run is over."""


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("muon", marks=pytest.mark.slow)])
def test_a_run_that_was_stopped_ends_with_the_same_bits(
    make_stage: MakeStage, tokenizer: Artifact, tmp_path: Path, optimizer: str
) -> None:
    settings = {"optimizer": optimizer, "evaluate_every": 4}

    def stop(progress: Any) -> None:
        if progress.step == 5:
            raise StoppedError

    whole = make_stage(tmp_path / "whole", "pretrain", {"tokenizer": tokenizer}, settings=settings)
    expected = train(whole)
    stopped = make_stage(tmp_path / "stopped", "pretrain", {"tokenizer": tokenizer}, settings=settings, report=stop)
    with pytest.raises(StoppedError):
        train(stopped)
    again = make_stage(tmp_path / "stopped", "pretrain", {"tokenizer": tokenizer}, settings=settings)
    assert list(again.checkpoints.glob("checkpoint-4/complete"))
    result = train(again)
    assert folder_digest(again.output) == folder_digest(whole.output)
    assert result.metrics == expected.metrics
    assert result.tokens_trained == expected.tokens_trained


def test_isolated_documents_are_those_computed_alone(
    make_stage: MakeStage, tokenizer: Artifact, documents: list[str], tmp_path: Path
) -> None:
    """The first loss: of each piece of a document by itself, its first token given."""
    settings = {"isolated": True, "batch_size": 1000, "checkpoint_every": 500}
    context = make_stage(tmp_path, "pretrain", {"tokenizer": tokenizer}, settings=settings)
    result = train(context)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(context.output).eval()
    held_out = tokens_of(documents, tokenizer, held_out=True)
    total, count, place = 0.0, 0, 0
    for document in held_out:
        cuts = [0] + [cut for cut in range(1, len(document)) if (place + cut) % 64 == 0] + [len(document)]
        for begin, end in itertools.pairwise(cuts):
            piece = torch.tensor([document[begin:end]])
            with torch.inference_mode():
                logprobs = model(input_ids=piece).logits[0, :-1].double().log_softmax(-1)
            total -= float(logprobs.gather(-1, piece[0, 1:, None]).sum())
            count += end - begin - 1
        place += len(document)
    assert result.metrics["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-4)


@pytest.mark.slow
def test_a_whole_model_reads_on(make_stage: MakeStage, tokenizer: Artifact, tmp_path: Path) -> None:
    """Its first loss is where the model that it continues from ended, not that of a new one."""
    first = make_stage(tmp_path / "first", "pretrain", {"tokenizer": tokenizer}, settings={"epochs": 4})
    before = train(first)
    start = Artifact(
        name="base", kind="model", version=1, digest=folder_digest(first.output), path=str(first.output), key="first"
    )
    settings = {"model": "base", "tokenizer": None, "architecture": None, "learning_rate": 1e-4}
    second = make_stage(tmp_path / "second", "pretrain", {"base": start}, settings=settings, model={"base": start.path})
    after = train(second)
    assert losses(second)[0] == pytest.approx(before.metrics["loss"], rel=0.1)
    assert after.metrics["perplexity"] < 1.05 * before.metrics["perplexity"]


def test_muon_trains_the_matrices_of_the_layers(make_stage: MakeStage, tokenizer: Artifact, tmp_path: Path) -> None:
    """The first step of a matrix, by hand: orthogonalised momentum at 0.2 √(longer side) of the learning rate."""
    settings = {
        "optimizer": "muon", "batch_size": 1000, "warmup": 0.0, "schedule": "constant", "weight_decay": 0.0,
        "max_grad_norm": 1e9,
    }  # fmt: skip
    context = make_stage(tmp_path, "pretrain", {"tokenizer": tokenizer}, settings=settings)
    begun: dict[str, torch.Tensor] = {}
    import alignment.stages.pretraining.pretrain as stage

    made = stage._beginning

    def beginning(*arguments: Any) -> Any:
        model, read = made(*arguments)
        begun.update({name: weight.detach().clone() for name, weight in model.named_parameters()})
        return model, read

    stage._beginning = beginning  # what it began with is nowhere else
    try:
        train(context)
    finally:
        stage._beginning = made
    trained = dict(AutoModelForCausalLM.from_pretrained(context.output).named_parameters())
    moved = {name: (trained[name] - begun[name]).detach() for name in begun}
    for name, change in moved.items():
        if change.ndim == 2 and "layers" in name:
            singular = torch.linalg.svdvals(change.double()) / (3e-3 * 0.2 * math.sqrt(max(change.shape)))
            assert 0.7 < float(singular.median()) < 1.2, name  # where five Newton-Schulz steps end
            assert float(singular.max()) < 1.35, name
        else:  # the first step of Adam is the learning rate, by sign
            used = change[change != 0].abs()
            assert float(used.max()) == pytest.approx(3e-3, rel=0.02), name


def test_muon_learns_as_much_as_adamw_each_at_its_learning_rate(
    make_stage: MakeStage, tokenizer: Artifact, tmp_path: Path
) -> None:
    """The same model on the same rows; of 1e-3, 3e-3, 1e-2 and 3e-2 these are the best of each.

    Muon's steps are a fifth of the learning rate in root mean square, AdamW's first ones nearly all of it.
    """
    found = {}
    for optimizer, learning_rate in (("adamw", 1e-2), ("muon", 3e-2)):
        settings = {
            "optimizer": optimizer, "learning_rate": learning_rate, "epochs": 3, "checkpoint_every": 500,
            "evaluate_every": 10,
        }  # fmt: skip
        context = make_stage(tmp_path / optimizer, "pretrain", {"tokenizer": tokenizer}, settings=settings)
        found[optimizer] = train(context)
    adamw, muon = (found[name].curves["held_out_perplexity"] for name in ("adamw", "muon"))
    assert [step for step, _value in adamw] == [step for step, _value in muon]
    assert muon[-1][1] < muon[0][1] / 2
    assert found["muon"].metrics["perplexity"] < found["adamw"].metrics["perplexity"]


EXPERTS = SHAPE | {"experts": 4}


def test_a_mixture_of_experts_tells_how_it_uses_them(
    make_stage: MakeStage, tokenizer: Artifact, documents: list[str], tmp_path: Path
) -> None:
    """Loads from the saved model's own router logits; the routers' loss is part of the loss, and falls to the least."""
    settings = {"architecture": EXPERTS, "epochs": 3, "router_loss": 0.5, "checkpoint_every": 500}
    context = make_stage(tmp_path, "pretrain", {"tokenizer": tokenizer}, settings=settings)
    result = train(context)
    model = AutoModelForCausalLM.from_pretrained(context.output).eval()
    assert model.config.model_type == "mixtral"
    held_out = tokens_of(documents, tokenizer, held_out=True)
    flat = [token for document in held_out for token in document]
    flat += [AutoTokenizer.from_pretrained(tokenizer.path).pad_token_id] * (-len(flat) % 64)
    counts = torch.zeros(2, 4)
    with torch.inference_mode():
        output = model(input_ids=torch.tensor(flat).view(-1, 64), output_router_logits=True)
    for layer, logits in enumerate(output.router_logits):
        counts[layer] = torch.bincount(logits.topk(2).indices.flatten(), minlength=4)
    loads = json.loads((context.output / "experts.json").read_text())
    assert torch.tensor(loads).numpy() == pytest.approx((counts * 4 / counts.sum(-1, keepdim=True)).numpy(), abs=0.05)
    assert result.metrics["expert_load.max"] == max(max(layer) for layer in loads)
    assert result.metrics["starved_experts"] == 0
    size = len(AutoTokenizer.from_pretrained(tokenizer.path))
    assert losses(context)[0] == pytest.approx(math.log(size) + 0.5 * 2, rel=0.03)  # even routers: top_k each layer's


def test_experts_that_are_hardly_used_raise_an_alarm() -> None:
    from alignment.training.pretraining.experts import load_alarm, load_metrics

    loads = [[1.0, 1.0], [1.95, 0.05]]
    assert load_metrics(loads) == {"expert_load.max": 1.95, "expert_load.min": 0.05, "starved_experts": 1.0}
    assert (load_alarm(loads) or "").startswith("starved_experts: expert 1 of layer 1 see less than a tenth")
    assert load_alarm([[1.0, 1.0]]) is None
    assert load_metrics([]) == {}


@pytest.mark.parametrize(
    ("settings", "texts", "words"),
    [({"max_length": 60_000}, None, "do not fill a row"), ({}, ["One document."], "a single document")],
)
def test_what_is_too_little_ends_the_stage(
    make_stage: MakeStage, tokenizer: Artifact, tmp_path: Path, settings: Any, texts: Any, words: str
) -> None:
    context = make_stage(tmp_path, "pretrain", {"tokenizer": tokenizer}, settings=settings, texts=texts)
    with pytest.raises(StageError, match=words):
        train(context)


def test_an_adapter_reads_nothing_on(make_stage: MakeStage, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    start = Artifact(name="sft", kind="model", version=1, digest="1", path=str(folder), key="1")
    settings = {"model": "sft", "tokenizer": None, "architecture": None}
    context = make_stage(tmp_path / "stage", "pretrain", {"sft": start}, settings=settings, model={"base": "x"})
    with pytest.raises(StageError, match="is an adapter, and pretraining trains all weights"):
        train(context)


def test_a_shape_that_says_nothing_else_is_llamas() -> None:
    from alignment.recipe.stages.pretraining.pretrain import Architecture

    assert Architecture(**SHAPE).inner_width() == 96  # 8/3 × 32 = 85.3, up to a multiple of 32
