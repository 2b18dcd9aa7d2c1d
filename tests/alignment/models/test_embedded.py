"""The embedded model's tokenizer, where a version of transformers reads the file wrongly."""

import pytest
from transformers import AutoTokenizer

from alignment.models import embedded


def test_its_special_tokens_are_its_own_whatever_transformers_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    read = AutoTokenizer.from_pretrained

    def as_5_17_does(*args: object, **options: object) -> object:
        tokenizer = read(*args, **options)
        tokenizer.eos_token, tokenizer.pad_token = tokenizer.bos_token, None
        return tokenizer

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", as_5_17_does)
    tokenizer = embedded.read_tokenizer("smollm2-135m")
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer("<|im_end|>").input_ids == [tokenizer.eos_token_id] == [2]
    assert tokenizer.pad_token_id == 2
