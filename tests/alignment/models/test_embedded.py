"""The embedded model's tokenizer, where a version of transformers reads the file wrongly."""

from types import SimpleNamespace

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from alignment.models.embedded import name_special_tokens


def test_special_tokens_are_those_that_the_configuration_has_by_number() -> None:
    words = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
    tokenizer = PreTrainedTokenizerFast(  # as transformers 5.17 reads SmolLM2's GGUF file
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<|endoftext|>")), bos_token="<|im_start|>",
        eos_token="<|im_start|>", unk_token="<|endoftext|>",
    )  # fmt: skip
    name_special_tokens(tokenizer, SimpleNamespace(bos_token_id=1, eos_token_id=2, pad_token_id=None))
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<|im_start|>", "<|im_end|>", None)
    assert tokenizer.unk_token == "<|endoftext|>"
    assert tokenizer.eos_token_id == 2
