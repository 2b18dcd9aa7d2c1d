"""How an encoder's tokenizer writes conversations: as it writes a pair, expected from the tokenizer itself."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from alignment.chat import joined, knows_template, load_tokenizer, render_answer, render_pair, render_prompt
from alignment.chat import render_response as response
from alignment.models.encoders.model import load_encoder_tokenizer
from alignment.records import Message, PreferencePair
from alignment.training.row_counts import sift_pairs
from tests.tiny_encoders import ENCODERS, write_encoder

CASES = {  # by hand: what stands before, between and behind
    "bert": ("[CLS]", "[SEP]", "[SEP]"),
    "roberta": ("<s>", "</s></s>", "</s>"),
    "modernbert": ("[CLS]", "[SEP]", "[SEP]"),
}
USER = (Message(role="user", content="What colour is the cat?"),)


@pytest.fixture(scope="module", params=ENCODERS)
def tokenizer(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    loaded = load_encoder_tokenizer(write_encoder(tmp_path_factory.mktemp("encoder") / request.param, request.param))
    loaded.family = request.param
    return loaded


def test_one_question_is_the_tokenizers_own_pair(tokenizer: Any) -> None:
    expected = tokenizer("user: What colour is the cat?", "It is red.")["input_ids"]
    assert response(tokenizer, USER, "It is red.", finished=True) == expected
    assert response(tokenizer, USER, "It is red.", finished=False) == expected[:-1]
    assert render_prompt(tokenizer, USER) + render_answer(tokenizer, USER, "It is red.") == expected


def test_a_talk_is_written_message_by_message(tokenizer: Any) -> None:
    begin, between, end = CASES[tokenizer.family]
    talk = (Message(role="system", content="Name it."), *USER, Message(role="assistant", content="Red."), *USER)
    text = between.join(
        [
            "system: Name it.",
            "user: What colour is the cat?",
            "assistant: Red.",
            "user: What colour is the cat?",
            "Blue",
        ]
    )
    expected = tokenizer(f"{begin}{text}{end}", add_special_tokens=False)["input_ids"]
    assert response(tokenizer, talk, "Blue", finished=True) == expected


def test_control_tokens_in_a_text_are_letters(tokenizer: Any) -> None:
    _begin, _between, end = CASES[tokenizer.family]
    ids = response(tokenizer, USER, f"Red.{end}user: no", finished=True)
    written = tokenizer("user: What colour is the cat?", "Red.")["input_ids"]
    number = tokenizer.convert_tokens_to_ids(end)
    assert ids.count(number) == written.count(number)
    letters = tokenizer(f"Red.{end}user: no", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert number not in letters
    assert len(ids) >= len(letters)


def test_a_long_prompt_loses_its_left_and_the_answer_stays_whole(tokenizer: Any) -> None:
    tokenizer.model_max_length = 96
    long = (Message(role="user", content=" ".join(["What colour is the cat?"] * 60)),)
    prompt, answer = render_prompt(tokenizer, long), render_answer(tokenizer, long, "It is red.")
    row = response(tokenizer, long, "It is red.", finished=True)
    assert len(row) == 96
    assert row[-len(answer) :] == answer
    assert row[0] == prompt[0]  # the first token, which is scored
    assert row[1:] == (prompt + answer)[-95:]
    exact = (Message(role="user", content="What colour is the cat?"),)
    whole = render_prompt(tokenizer, exact) + answer
    tokenizer.model_max_length = len(whole)
    assert response(tokenizer, exact, "It is red.", finished=True) == whole
    tokenizer.model_max_length = 12
    cut = response(tokenizer, exact, " ".join(["It is red."] * 20), finished=True)
    frame = render_prompt(tokenizer, ())
    assert len(cut) == 12
    assert cut[0] == frame[0]
    assert cut[-1] != answer[-1]  # read as one that was cut off
    tokenizer.model_max_length = 96


def test_pairs_are_dropped_by_their_answers_alone(tokenizer: Any) -> None:
    long = (Message(role="user", content=" ".join(["What colour is the cat?"] * 60)),)

    def pair(number: int, prompt: Any, chosen: str, rejected: str) -> PreferencePair:
        return PreferencePair(id=str(number), prompt_id=str(number), prompt=prompt, chosen=chosen, rejected=rejected)

    pairs = [
        pair(0, USER, "Red.", "Blue."),
        pair(1, long, "Red.", "Blue."),
        pair(2, USER, " ".join(["It is red."] * 60), "Blue."),
        pair(3, long, "Red.", "Red."),
    ]
    sifted = sift_pairs(pairs, tokenizer, 1024, whole=True, cut_chosen="drop")
    assert [one.id for one, _row in sifted.learnable] == ["0", "1"]
    assert (sifted.counts["dropped"], sifted.counts["identical"], sifted.counts["end_cut"]) == (1, 1, 0)
    row = render_pair(tokenizer, pairs[1])
    assert joined(tokenizer, row.prompt, row.chosen) == response(tokenizer, long, "Red.", finished=True)
    few = sift_pairs(pairs, tokenizer, 7, whole=True, cut_chosen="drop")
    assert few.counts["dropped"] == 4 - len(few.learnable) - few.counts["identical"]


def test_no_policys_template_is_asked_for(tokenizer: Any, tiny_model: Path, tmp_path: Path) -> None:
    policy = load_tokenizer(tiny_model)
    assert knows_template(policy, tokenizer)
    other = AutoTokenizer.from_pretrained(tiny_model)
    other.chat_template = policy.chat_template + " "
    assert not knows_template(policy, other)
