"""Encoder-decoders sampled, evaluated and planned for: the stages as a recipe runs them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from alignment.data.jsonl import read_records
from alignment.metrics.results import EvaluatedPrompt, Evaluation
from alignment.models.base_model import prepare_base
from alignment.plan.sizes import model_size
from alignment.recipe.run_settings import ModelSettings
from alignment.records import Artifact, Response
from alignment.registry.card import _code
from alignment.stage import StageContext
from alignment.stages import evaluate, sample, sft
from alignment.workspace import Workspace
from tests.alignment.conftest import artifact_of
from tests.tiny_seq2seq import FAMILIES, write_seq2seq

MakeContext = Callable[..., StageContext]
METRICS = [{"kind": "bleu"}, {"kind": "rouge"}, {"kind": "perplexity"}, {"kind": "exact_match"}]
NEW = 10


@pytest.fixture(scope="module", params=FAMILIES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("base")
    model = write_seq2seq(folder / request.param, request.param)
    return prepare_base(Workspace(folder / "space"), ModelSettings(base=str(model)))


@pytest.fixture(scope="module")
def trained(base: Artifact, make_context: MakeContext, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """An adapter that learned the demonstrations."""
    settings = {"lora": {"rank": 8, "alpha": 16}, "epochs": 6, "learning_rate": 1e-2, "max_length": 96}
    context = make_context(tmp_path_factory.mktemp("sft"), "sft", {"base": base}, settings=settings)
    result = sft.run(context.recipe.stages["sft"], context)  # type: ignore[attr-defined]
    assert result.metrics["loss"] < 0.98 * result.curves["loss"][0][1]  # type: ignore[index]
    return artifact_of("sft", "model", context.output, {"base": base})


def plain_answers(model: Any, tokenizer: Any, texts: list[str]) -> list[str]:
    """Greedy answers of transformers' own, one prompt at a time."""
    model.generation_config.forced_eos_token_id = None
    rows = [
        model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=NEW, do_sample=False, num_beams=1)[0]
        for text in texts
    ]
    return [str(tokenizer.decode(row, skip_special_tokens=True)) for row in rows]


def test_responses_are_drawn_again_after_a_death(base: Artifact, make_context: MakeContext, tmp_path: Path) -> None:
    settings = {"model": "base", "per_prompt": 2, "sampling": {"temperature": 0.9, "max_new_tokens": NEW}}
    texts = []
    for name in ("one", "two"):
        context = make_context(tmp_path / name, "responses", {"base": base}, settings=settings)
        sample.run(context.recipe.stages["responses"], context)  # type: ignore[attr-defined]
        found = read_records(context.output / "responses.jsonl", Response)
        texts.append([one.text for one in found])
        assert len(found) == 2 * len({one.prompt_id for one in found})
    assert texts[0] == texts[1]


def test_an_evaluation_measures_it(
    base: Artifact, trained: Artifact, make_context: MakeContext, tmp_path: Path
) -> None:
    """Answers are transformers' own, the KL of a trained one is above 0, and text metrics are there."""
    settings = {
        "model": "sft", "against": ["base"], "reward": None, "metrics": METRICS, "kl_prompts": 4,
        "sampling": {"temperature": 0.0, "max_new_tokens": NEW},
    }  # fmt: skip
    context = make_context(tmp_path, "evaluation", {"base": base, "sft": trained}, settings=settings)
    rows = [{"prompt": f"Who saw the cat {n}?", "reference": "It is red."} for n in range(30)]
    context.data = {**context.data, "prompts": tmp_path / "asked.jsonl"}
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    result = evaluate.run(context.recipe.stages["evaluation"], context)  # type: ignore[attr-defined]
    found = Evaluation.model_validate_json((context.output / "evaluation.json").read_text())
    samples = read_records(context.output / "samples.jsonl", EvaluatedPrompt)
    asked = [one.prompt[-1].content for one in samples]

    from alignment.chat import load_tokenizer

    tokenizer = load_tokenizer(base.path)
    plain: Any = AutoModelForSeq2SeqLM.from_pretrained(base.path).eval()
    said = [one.texts["base"] for one in samples]
    assert said == plain_answers(plain, tokenizer, asked)
    assert result.metrics["kl"] > 0
    assert found.prompts == len(asked)
    for name in ("bleu", "rouge_l", "exact_match"):
        assert 0 <= result.metrics[f"metric.sft.{name}.value"] <= 100

    labels = tokenizer(text_target="It is red.", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        losses = [plain(**tokenizer(text, return_tensors="pt"), labels=labels).loss for text in asked]
    expected = torch.stack(losses).mean().exp().item()
    assert result.metrics["metric.base.perplexity.value"] == pytest.approx(expected, rel=1e-4)
    assert result.metrics["metric.sft.perplexity.value"] < expected  # it has learned such answers


def test_the_plan_counts_both_parts(base: Artifact) -> None:
    """All numbers of the model that transformers makes, a tied head once."""
    config = AutoConfig.from_pretrained(base.path)
    model = AutoModelForSeq2SeqLM.from_pretrained(base.path)
    size = model_size(config)
    assert size.parameters == sum(weight.numel() for weight in model.parameters())
    assert size.layers == 4
    assert size.tied
    from alignment.models.adapters import add_lora
    from alignment.recipe.base import Lora

    lora = Lora(rank=4, alpha=8)
    adapted = add_lora(model, lora)
    assert size.adapter(lora) == sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)


def test_the_plan_counts_a_head_of_its_own(tmp_path: Path) -> None:
    folder = write_seq2seq(tmp_path, "t5", own_head=True)
    held = load_file(folder / "model.safetensors")
    size = model_size(AutoConfig.from_pretrained(folder))
    assert size.parameters == sum(weight.numel() for name, weight in held.items() if "embed_tokens" not in name)
    assert not size.tied


def test_the_card_says_how_it_is_loaded(base: Artifact, trained: Artifact) -> None:
    assert "AutoModelForSeq2SeqLM.from_pretrained" in _code(Path(base.path))
    assert "AutoPeftModelForSeq2SeqLM.from_pretrained" in _code(Path(trained.path))
