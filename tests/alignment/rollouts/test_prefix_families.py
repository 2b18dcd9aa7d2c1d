"""Every family of decoders: what is read on from, read once for a batch, or read several tokens at once is its own.

The reference is whole passes without any cache: the likeliest token after the whole row, one after another.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from alignment.records import Sampling
from alignment.rollouts.drafts import PromptLookup
from alignment.rollouts.prefix_cache import PrefixCache, keeps_prefixes
from alignment.rollouts.stream import complete
from alignment.rollouts.transformers_engine import TransformersEngine
from tests.tiny_families import DECODERS, build

KEPT_NOTHING_OF = {  # sliding windows, chunks, recurrent states
    "llama4", "mistral", "gemma2", "gemma3", "gemma3_vision", "gemma4", "qwen3_next", "gpt_oss", "mamba", "falcon_h1",
    "jamba", "recurrent_gemma", "modernbert_decoder",
}  # fmt: skip
TOKENIZER: Any = SimpleNamespace(decode=lambda *_args, **_options: "")
GREEDY = Sampling(temperature=0.0, max_new_tokens=6)


def whole_passes(model: Any, row: list[int]) -> list[int]:
    ids = list(row)
    with torch.no_grad():
        for _ in range(GREEDY.max_new_tokens):
            output = model(input_ids=torch.tensor([ids]), use_cache=False)
            ids.append(int(output.logits[0, -1].argmax()))
    return ids[len(row) :]


@pytest.mark.parametrize("name", DECODERS)
def test_a_familys_answers_are_those_of_whole_passes(name: str) -> None:
    model = build(name)
    engine = TransformersEngine(model, TOKENIZER, stop_ids={-1}, share_prefixes=True)
    assert keeps_prefixes(engine) == (name not in KEPT_NOTHING_OF)
    if name in KEPT_NOTHING_OF:
        return
    begun = [*range(10, 40)]
    prompts = [[*begun, 50, 51, 52], [*begun, 60], [*begun, 70, 71], [*begun, 80, 81, 82, 83]]
    expected = [whole_passes(model, prompt) for prompt in prompts]
    batch = engine.generate(prompts, sampling=GREEDY, seeds=range(4))
    assert [list(found.tokens) for (found,) in batch] == expected
    for drafter in (None, PromptLookup(3)):
        cache = PrefixCache(engine)
        for prompt, tokens in zip(prompts, expected, strict=True):
            assert list(complete(cache, prompt, sampling=GREEDY, seed=0, drafter=drafter).tokens) == tokens
        assert cache.reused == 3 * len(begun)
