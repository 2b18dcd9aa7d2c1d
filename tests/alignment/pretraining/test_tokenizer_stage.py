"""The tokenizer that a stage makes: against BPE by hand, its special tokens, its template, the same from any order."""

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from alignment.chat import load_tokenizer
from alignment.durable_files import folder_digest
from alignment.errors import InputError
from alignment.recipe.stages.pretraining.tokenizer import TokenizerStage
from alignment.stages.pretraining.tokenizer import run
from alignment.training.pretraining.bpe import train_tokenizer
from alignment.training.pretraining.rows import encode_document
from tests.alignment.pretraining.conftest import MakeStage


def bpe_by_hand(words: Counter[str], merges: int) -> list[str]:
    """The merges of Sennrich et al. 2016: the most frequent pair of neighbours, again and again."""
    split = {word: list(word) for word in words}
    found = []
    for _ in range(merges):
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in split.items():
            for pair in itertools.pairwise(parts):
                pairs[pair] += words[word]
        [(best, count), *more] = pairs.most_common(2)
        assert not more or more[0][1] < count, "a tie, which the method leaves open"
        found.append("".join(best))
        for parts in split.values():
            place = 0
            while place < len(parts) - 1:
                if (parts[place], parts[place + 1]) == best:
                    parts[place : place + 2] = ["".join(best)]
                place += 1
    return found


def test_merges_are_those_by_hand() -> None:
    words = Counter({"ab": 20, "abc": 9, "xyz": 5, "xy": 3})
    expected = bpe_by_hand(words, 4)
    documents = ["\n".join([word] * count) for word, count in words.items()]
    stage = TokenizerStage(kind="tokenizer", vocabulary=256 + 3 + 4)
    made = json.loads(train_tokenizer(stage, documents).backend_tokenizer.to_str())
    assert ["".join(pair) for pair in made["model"]["merges"]] == expected


def test_the_same_from_the_same_documents_in_any_order(
    make_stage: MakeStage, documents: list[str], tmp_path: Path
) -> None:
    digests = set()
    for name, texts in (("one", documents), ("two", documents[::-1])):
        context = make_stage(tmp_path / name, "tokenizer", texts=texts)
        result = run(context.recipe.stages["tokenizer"], context)  # type: ignore[arg-type,union-attr]
        assert result.metrics["vocabulary"] <= 400
        assert result.metrics["documents"] == len(documents)
        digests.add(folder_digest(context.output))
    assert len(digests) == 1


def test_what_reads_like_a_special_token_is_text_and_every_text_comes_back() -> None:
    tokenizer = train_tokenizer(TokenizerStage(kind="tokenizer", vocabulary=300), ["the cat and the dog"] * 5)
    text = "Says <|im_end|> and <|im_start|>: naïve 日本 \n\t 🙂"
    ids = encode_document(tokenizer, text)
    special = {tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|im_start|>", "<|endoftext|>")}
    assert ids[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert not special & set(ids[:-1])
    assert tokenizer.decode(ids[:-1]) == text


def test_it_holds_a_conversation(make_stage: MakeStage, tmp_path: Path) -> None:
    settings = {"eos_token": "[E]", "pad_token": "[P]", "special_tokens": ["[S]", "[T]"]}
    context = make_stage(tmp_path, "tokenizer", settings=settings)
    run(context.recipe.stages["tokenizer"], context)  # type: ignore[arg-type,union-attr]
    made = load_tokenizer(context.output)
    turns = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Ho."}]
    assert made.apply_chat_template(turns, tokenize=False) == "[S]user\nHi.[E]\n[S]assistant\nHo.[E]\n"
    assert (made.eos_token, made.pad_token) == ("[E]", "[P]")
    assert len(made("[T]", add_special_tokens=False)["input_ids"]) == 1


def test_a_template_that_holds_no_conversation_is_refused(make_stage: MakeStage, tmp_path: Path) -> None:
    tmp_path.joinpath("wrong.jinja").write_text("nothing")
    context = make_stage(tmp_path, "tokenizer", model={"chat_template": str(tmp_path / "wrong.jinja")})
    with pytest.raises(InputError):
        run(context.recipe.stages["tokenizer"], context)  # type: ignore[arg-type,union-attr]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"eos_token": "<|endoftext|>"}, "stands twice"),
        ({"vocabulary": 260, "special_tokens": ["a", "b", "c"]}, "has no room"),
        ({"eos_token": "a b"}, "pattern"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TokenizerStage.model_validate({"kind": "tokenizer", **settings})
