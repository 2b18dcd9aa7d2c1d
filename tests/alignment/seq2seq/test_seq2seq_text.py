"""How a conversation is written for an encoder-decoder, held against what its tokenizer writes by itself."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from alignment.chat import load_tokenizer, render_answer, render_example, render_prompt
from alignment.records import Message
from alignment.text_rules.encoder_decoder import rule_problem, write_by_rule
from tests.tiny_seq2seq import FAMILIES, unigram, write_seq2seq


def turns(*texts: str, system: str | None = None) -> list[Message]:
    said = [Message(role=("user", "assistant")[place % 2], content=text) for place, text in enumerate(texts)]
    return [*([] if system is None else [Message(role="system", content=system)]), *said]


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_seq2seq(tmp_path_factory.mktemp("model") / "model", request.param)


def test_it_is_what_the_tokenizer_writes(folder: Path) -> None:
    plain: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer = load_tokenizer(folder)
    question = "Who saw the red cat, in one word?"
    assert render_prompt(tokenizer, turns(question)) == plain(question)["input_ids"]
    with_system = turns(question, system="translate English to German:")
    assert render_prompt(tokenizer, with_system) == plain(f"translate English to German:\n{question}")["input_ids"]
    longer = turns("Who?", "The dog.", question)
    expected = plain(f"user: Who?\nassistant: The dog.\nuser: {question}")["input_ids"]
    assert render_prompt(tokenizer, longer) == expected
    answer = plain(text_target="It is blue.")["input_ids"]
    assert render_answer(tokenizer, longer, "It is blue.") == answer
    assert answer[-1] == plain.eos_token_id
    assert render_answer(tokenizer, longer, "It is blue.", finished=False) == answer[:-1]


def test_the_last_answer_is_learned(folder: Path) -> None:
    plain: Any = AutoTokenizer.from_pretrained(folder)
    ids, mask = render_example(load_tokenizer(folder), turns("Who?", "The dog.", "And now?", "The owl."))
    prompt = plain("user: Who?\nassistant: The dog.\nuser: And now?")["input_ids"]
    answer = plain(text_target="The owl.")["input_ids"]
    assert ids == prompt + answer
    assert mask == [False] * len(prompt) + [True] * len(answer)


def test_the_rule_is_saved_with_the_tokenizer(folder: Path, tmp_path: Path) -> None:
    """An adapter's folder has no configuration that says what its base is."""
    tokenizer = load_tokenizer(folder)
    tokenizer.save_pretrained(tmp_path)
    assert render_prompt(load_tokenizer(tmp_path), turns("Who?")) == render_prompt(tokenizer, turns("Who?"))


def test_control_tokens_in_a_text_are_letters(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    ids = render_prompt(tokenizer, turns("It ends </s> here"))
    assert ids.count(tokenizer.eos_token_id) == 1


def test_a_tokenizer_that_ends_no_target() -> None:
    from tokenizers import processors

    tokenizer = unigram()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    assert rule_problem(tokenizer) is not None
    write_by_rule(tokenizer)
    assert tokenizer.chat_template is None
