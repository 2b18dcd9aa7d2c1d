"""Answers of encoder-decoders, held against transformers' own ``generate``."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from alignment.metrics.kl import batched_kls
from alignment.metrics.model_metrics import reference_likelihoods
from alignment.models.families import stop_ids
from alignment.records import Message, Prompt, Sampling
from alignment.rollouts.factory import local_engine
from alignment.rollouts.policy_pool import LoadedPolicy
from alignment.rollouts.prefix_cache import keeps_prefixes
from tests.tiny_seq2seq import FAMILIES, write_seq2seq

TEXTS = ("Who saw it?", "What is the word for the red cat, and who saw it today?", "Name it.", "The dog. The owl. Red.")
STEPS = 12


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    from alignment.chat import load_tokenizer

    folder: Path = write_seq2seq(tmp_path_factory.mktemp("model") / "model", request.param)
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    model.generation_config.forced_eos_token_id = None  # an answer that is cut off has no end
    return model, load_tokenizer(folder)


def generated(model: Any, tokenizer: Any, *, side: str = "right", **options: Any) -> list[list[int]]:
    """What transformers draws for :data:`TEXTS`, padded on a side, up to EOS."""
    tokenizer.padding_side = side
    inputs = tokenizer(list(TEXTS), padding=True, return_tensors="pt")
    tokenizer.padding_side = "right"
    rows = model.generate(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=STEPS,
        **{"do_sample": False, "num_beams": 1} | options,
    )  # fmt: skip
    return [ended(row[1:].tolist(), tokenizer.eos_token_id) for row in rows]


def ended(tokens: list[int], eos: int) -> list[int]:
    return tokens[: tokens.index(eos) + 1] if eos in tokens else tokens


def answers(model: Any, tokenizer: Any, sampling: Sampling, *, batch_size: int = 3) -> list[Any]:
    engine = local_engine(model, tokenizer, batch_size=batch_size)
    drawn = engine.generate([tokenizer(text)["input_ids"] for text in TEXTS], sampling=sampling, seeds=range(4))
    return [completion for (completion,) in drawn]


@pytest.mark.parametrize("penalty", [1.0, 1.7])
def test_greedy_answers_are_generates_own(loaded: tuple[Any, Any], penalty: float) -> None:
    model, tokenizer = loaded
    found = answers(model, tokenizer, Sampling(temperature=0, max_new_tokens=STEPS, repetition_penalty=penalty))
    expected = generated(model, tokenizer, repetition_penalty=penalty)
    assert [list(one.tokens) for one in found] == expected
    if model.config.model_type == "t5":  # BART counts positions from the padding's beginning
        assert expected == generated(model, tokenizer, side="left", repetition_penalty=penalty)
    assert [one.finished for one in found] == [row[-1] == tokenizer.eos_token_id for row in expected]
    assert len({tuple(row) for row in expected}) > 1  # they answer what they are asked


def test_the_best_beams_are_generates_own(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    found = answers(model, tokenizer, Sampling(temperature=0, max_new_tokens=STEPS, beams=3), batch_size=12)
    assert [list(one.tokens) for one in found] == generated(model, tokenizer, num_beams=3)


def test_how_answers_are_drawn_is_the_recipes_to_say(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Summarisers come with beams, a least length and forbidden repeats among their own generation settings."""
    model, tokenizer = loaded
    ways = [Sampling(temperature=0, max_new_tokens=STEPS, beams=beams) for beams in (1, 3)]
    before = [[one.tokens for one in answers(model, tokenizer, way, batch_size=12)] for way in ways]
    own = {"num_beams": 4, "min_length": 9, "no_repeat_ngram_size": 1, "forced_eos_token_id": tokenizer.eos_token_id}
    for name, value in own.items():
        monkeypatch.setattr(model.generation_config, name, value)
    assert [[one.tokens for one in answers(model, tokenizer, way, batch_size=12)] for way in ways] == before


def test_a_forced_first_token(loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = loaded
    monkeypatch.setattr(model.generation_config, "forced_bos_token_id", 9)
    found = answers(model, tokenizer, Sampling(temperature=0, max_new_tokens=STEPS))
    assert [list(one.tokens) for one in found] == generated(model, tokenizer)
    assert {one.tokens[0] for one in found} == {9}


def test_draws_depend_on_their_own_seeds_and_say_how_likely_they_were(loaded: tuple[Any, Any]) -> None:
    """The log-probabilities are those of the plain class on the same tokens, at the temperature of the draw."""
    model, tokenizer = loaded
    sampling = Sampling(temperature=0.7, top_k=20, top_p=0.9, max_new_tokens=STEPS)
    found = answers(model, tokenizer, sampling)
    assert [one.tokens for one in found] == [one.tokens for one in answers(model, tokenizer, sampling, batch_size=1)]
    for text, one in zip(TEXTS, found, strict=True):
        labels = torch.tensor([one.tokens])
        with torch.no_grad():
            logits = model(**tokenizer(text, return_tensors="pt"), labels=labels).logits[0]
        expected = (logits / 0.7).log_softmax(-1).gather(-1, labels[0][:, None]).squeeze(-1)
        torch.testing.assert_close(one.logprobs, expected, atol=2e-5, rtol=0)


def test_draws_come_as_often_as_they_are_likely(loaded: tuple[Any, Any]) -> None:
    """4,000 first tokens at temperature 1 against the plain class's probabilities: total variation as of a sample."""
    model, tokenizer = loaded
    count = 4000
    prompt = tokenizer(TEXTS[0])["input_ids"]
    engine = local_engine(model, tokenizer, batch_size=count)
    sampling = Sampling(temperature=1.0, max_new_tokens=1)
    [drawn] = engine.generate([prompt], sampling=sampling, seeds=range(count), per_prompt=count)
    with torch.no_grad():
        start = torch.tensor([[model.config.decoder_start_token_id]])
        probs = model(input_ids=torch.tensor([prompt]), decoder_input_ids=start).logits[0, 0].softmax(-1)
    shares = torch.bincount(torch.tensor([one.tokens[0] for one in drawn]), minlength=len(probs)) / count
    expected = (probs * (1 - probs) / count).sqrt().sum() / 2  # about the mean of a sample's distance
    assert (shares - probs).abs().sum() / 2 < 1.3 * expected


def test_no_token_is_taken_back(loaded: tuple[Any, Any]) -> None:
    assert not keeps_prefixes(local_engine(*loaded))


def test_likelihoods_and_kl_are_the_plain_classs(loaded: tuple[Any, Any]) -> None:
    """Against one plain pass for each answer; the KL against another model of other weights."""
    model, tokenizer = loaded
    torch.manual_seed(1)
    other: Any = AutoModelForSeq2SeqLM.from_config(model.config).eval()
    said = ("Red.", "It is blue.", "The cat saw it.", "Who?")
    prompts = [
        Prompt(id=str(n), messages=(Message(role="user", content=text),), reference=answer)
        for n, (text, answer) in enumerate(zip(TEXTS, said, strict=True))
    ]
    policy = LoadedPolicy(model, tokenizer, stop_ids(model, tokenizer))
    reference = LoadedPolicy(other, tokenizer, stop_ids(other, tokenizer))
    likelihoods = reference_likelihoods(policy, prompts, batch_size=3)
    asked = [tokenizer(text)["input_ids"] for text in TEXTS]
    targets = [tokenizer(text_target=text)["input_ids"] for text in said]
    kls = batched_kls(lambda: policy, lambda: reference, list(zip(asked, targets, strict=True)), batch_size=3)
    for (nats, count), kl, prompt, target in zip(likelihoods, kls, asked, targets, strict=True):
        given = {"input_ids": torch.tensor([prompt]), "labels": torch.tensor([target])}
        with torch.no_grad():
            output, others = model(**given), other(**given)
        assert count == len(target)
        assert nats == pytest.approx(output.loss.item() * count, abs=1e-4)
        own, theirs = output.logits[0].log_softmax(-1), others.logits[0].log_softmax(-1)
        assert kl == pytest.approx((own.exp() * (own - theirs)).sum().item(), abs=1e-4)
