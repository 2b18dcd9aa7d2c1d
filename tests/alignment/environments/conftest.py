"""A tokenizer of whole words with a chat template, and an engine that says what it was told to."""

from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from alignment.rollouts.engine import Completion

TEMPLATE = (
    "{% for m in messages %}<begin> {{ m.role }} : {{ m.content }} <end> / {% endfor %}"
    "{% if add_generation_prompt %}<begin> assistant : {% endif %}"
)
WORDS = ["<unk>", "<begin>", "<end>", "/", ":", "user", "assistant", "tool", "what", "is", "one", "two", "three",
         "call"]  # fmt: skip
ID = {word: place for place, word in enumerate(WORDS)}


def word_tokenizer(template=TEMPLATE):
    inner = Tokenizer(models.WordLevel(ID, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens(["<begin>", "<end>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", unk_token="<unk>")
    tokenizer.chat_template = template
    return tokenizer


def byte_tokenizer():
    """One token a byte, but for "ab", which is one; and the two control tokens of ``TEMPLATE``."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: place for place, token in enumerate(["<begin>", "<end>", *alphabet, "ab"])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b")]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<begin>", "<end>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


class Scripted:
    """Says the next of its lines to each conversation, in the order in which they are asked; token i has the
    log-probability -i / 10. A line that does not end with ``<end>`` was cut off."""

    def __init__(self, *turns):
        self.turns, self.asked, self.seeds = [list(turn) for turn in turns], [], []

    def generate(self, prompts, *, sampling, seeds, per_prompt=1, on_progress=None):
        lines = self.turns.pop(0)
        assert len(lines) == len(prompts) == len(seeds)
        self.asked.append([tuple(prompt) for prompt in prompts])
        self.seeds.append(list(seeds))
        return [[self._said(line)] for line in lines]

    @staticmethod
    def _said(line):
        tokens = ids(line)
        text = " ".join(word for word in line.split() if word != "<end>")
        logprobs = torch.tensor([-(place + 1) / 10 for place in range(len(tokens))])
        return Completion(tokens, text, line.endswith("<end>"), logprobs)


def ids(text):
    return tuple(ID[word] for word in text.split())


@pytest.fixture
def words():
    return SimpleNamespace(ids=ids, tokenizer=word_tokenizer(), make_tokenizer=word_tokenizer, bytes=byte_tokenizer(),
                           scripted=Scripted)  # fmt: skip
