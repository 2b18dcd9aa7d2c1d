"""The chat templates of models that people use, as TRL carries them: each renders, stops and can be trained with."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from trl import chat_template_utils

from alignment.chat import load_tokenizer, render_answer, render_example, render_prompt
from alignment.records import Message

TEMPLATES = Path(chat_template_utils.__file__).parent / "chat_templates"
CONTROL = re.compile(r"<[|｜][^<>|｜\s]+[|｜]>|<\|?turn\|?>|<(?:start|end)_of_turn>|<\|turn>|<turn\|>")
# Template: (the EOS that the models' tokenizers name, what else their generation settings stop at, what ends a turn).
FAMILIES = {
    "gemma": ("<eos>", ["<end_of_turn>"], "<end_of_turn>"),
    "gemma3": ("<eos>", ["<end_of_turn>"], "<end_of_turn>"),
    "gemma4": ("<eos>", ["<turn|>"], "<turn|>"),
    "glm4moe": ("<|endoftext|>", ["<|user|>", "<|observation|>"], "<|user|>"),
    "deepseekv3": ("<｜end▁of▁sentence｜>", [], "<｜end▁of▁sentence｜>"),
    "deepseek_r1_distill": ("<｜end▁of▁sentence｜>", [], "<｜end▁of▁sentence｜>"),
    "nemotron_3_nano": ("<|im_end|>", [], "<|im_end|>"),
    "qwen2_5": ("<|im_end|>", ["<|endoftext|>"], "<|im_end|>"),
    "qwen3": ("<|im_end|>", ["<|endoftext|>"], "<|im_end|>"),
    "qwen3_5_think": ("<|im_end|>", [], "<|im_end|>"),
    "phi3": ("<|endoftext|>", ["<|end|>"], "<|end|>"),
    "phi3_5": ("<|endoftext|>", ["<|end|>"], "<|end|>"),
    "gptoss": ("<|return|>", [], "<|return|>"),
    "llama3": ("<|eot_id|>", [], "<|eot_id|>"),
    "cohere": ("<|END_OF_TURN_TOKEN|>", [], "<|END_OF_TURN_TOKEN|>"),
    "cohere2": ("<|END_OF_TURN_TOKEN|>", [], "<|END_OF_TURN_TOKEN|>"),
    "lfm2": ("<|im_end|>", [], "<|im_end|>"),
}
REWRITTEN = {"deepseekv3", "deepseek_r1_distill", "nemotron_3_nano", "qwen3", "qwen3_5_think", "gptoss"}
"""Templates that write an earlier answer otherwise than the last."""


def turns(*contents: str) -> tuple[Message, ...]:
    """User and assistant in turn."""
    return tuple(Message(role=("user", "assistant")[i % 2], content=text) for i, text in enumerate(contents))


def text_of(tokenizer: Any, messages: tuple[Message, ...], **options: Any) -> str:
    """What the template itself writes."""
    dicts = [message.model_dump() for message in messages]
    return str(tokenizer.apply_chat_template(dicts, tokenize=False, **options))


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest, tiny_model: Path, tmp_path: Path) -> tuple[str, Any, str]:
    """(name, tokenizer as it is loaded, the token that ends a turn)."""
    from transformers import AutoTokenizer

    template = (TEMPLATES / f"{request.param}.jinja").read_text("utf-8")
    eos, more, end = FAMILIES[request.param]
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    special = sorted({*CONTROL.findall(template), eos, *more, end, "<s>"})
    tokenizer.add_special_tokens({"eos_token": eos, "bos_token": "<s>", "additional_special_tokens": special})
    tokenizer.chat_template = template
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("chat_template*", "tokenizer*", "special*"))
    tokenizer.save_pretrained(folder)
    settings = {"eos_token_id": tokenizer.convert_tokens_to_ids([eos, *more])}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return request.param, load_tokenizer(folder), end


def test_a_turn_ends_with_its_own_token(family: tuple[str, Any, str], tmp_path: Path) -> None:
    _name, tokenizer, end = family
    assert tokenizer.eos_token == end
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    tokenizer.save_pretrained(tmp_path / "saved")  # as with an adapter, whose folder has no generation settings
    assert load_tokenizer(tmp_path / "saved").eos_token == end


def test_a_prompt_is_the_templates_and_begins_its_example(family: tuple[str, Any, str]) -> None:
    _name, tokenizer, end = family
    asked = turns("What colour is the cat?")
    prompt = render_prompt(tokenizer, asked)
    assert tokenizer.decode(prompt) == text_of(tokenizer, asked, add_generation_prompt=True)
    ids, mask = render_example(tokenizer, turns("What colour is the cat?", "It is red."))
    assert ids[: len(prompt)] == prompt
    assert mask == [False] * len(prompt) + [True] * (len(ids) - len(prompt))
    answer = tokenizer.decode(ids[len(prompt) :])
    assert answer.endswith(f"It is red.{end}") or answer.endswith(f"It is red.<|END_RESPONSE|>{end}")
    assert ids[-1] == tokenizer.eos_token_id
    assert render_answer(tokenizer, asked, "It is red.") == ids[len(prompt) :]


def test_an_unfinished_answer_has_no_end(family: tuple[str, Any, str]) -> None:
    _name, tokenizer, _end = family
    answer = tokenizer.decode(render_answer(tokenizer, turns("What is it?"), "It is", finished=False))
    assert answer.endswith("It is")


def test_several_turns(family: tuple[str, Any, str]) -> None:
    name, tokenizer, end = family
    whole = turns("What colour is the cat?", "It is red.", "Who saw it?", "The owl.")
    ids, mask = render_example(tokenizer, whole)
    prompt = render_prompt(tokenizer, whole[:3])
    assert tokenizer.decode(prompt) == text_of(tokenizer, whole[:3], add_generation_prompt=True)
    assert ids[: len(prompt)] == prompt
    assert all(mask[len(prompt) :])
    learned = tokenizer.decode([token for token, keep in zip(ids, mask, strict=True) if keep])
    assert learned.count(end) == (1 if name in REWRITTEN else 2)
    assert ("It is red." in learned) == (name not in REWRITTEN)


def test_a_thought_is_not_begun_twice(family: tuple[str, Any, str]) -> None:
    """What a model drew behind ``<think>``, and what a data set writes with it, are the same tokens."""
    name, tokenizer, end = family
    if name not in ("deepseek_r1_distill", "deepseekv3", "nemotron_3_nano"):
        pytest.skip("its template begins no thought")
    asked = turns("What is it?")
    drawn = render_answer(tokenizer, asked, "Fur.</think>It is a cat.")
    assert tokenizer.decode(drawn) == f"Fur.</think>It is a cat.{end}"
    assert render_answer(tokenizer, asked, "<think>\nFur.</think>It is a cat.") == drawn
