"""Many trees in one pass: the states of the plain pass, whatever is grouped with what."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from alignment.models.tree_attention import can_be_planted, groups, last_states, plant


@pytest.fixture(scope="module")
def trunk(tiny_model: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval().base_model


def begin(trunk: torch.nn.Module, tokens: list[int]) -> DynamicCache:
    cache = DynamicCache(config=trunk.config)
    if tokens:
        with torch.inference_mode():
            trunk(input_ids=torch.tensor([tokens]), past_key_values=cache, use_cache=True)
    return cache


@pytest.mark.parametrize("beginning", [[], [5, 6, 7]])
@pytest.mark.parametrize("most", [1, 40, 10_000])
def test_states_are_those_of_the_plain_pass(trunk: torch.nn.Module, beginning: list[int], most: int) -> None:
    torch.manual_seed(0)
    stem = torch.randint(4, 300, (12,)).tolist()
    rows = [torch.randint(4, 300, (n,)).tolist() for n in (9, 1, 17)]
    rows += [[*stem, 8], [*stem, 9, 10], stem[:4], [*stem, 8]]  # branches, a row inside another, and one twice
    cache = begin(trunk, beginning)
    found: dict[int, torch.Tensor] = {}
    for forest in plant(rows, beginning=len(beginning), width=48, most=most):
        states = last_states(trunk, forest, beginning=len(beginning), cache=cache)
        found |= dict(zip(forest.ends, states, strict=True))
        assert cache.get_seq_length() == len(beginning)
    assert sorted(found) == list(range(len(rows)))
    for number, row in enumerate(rows):
        with torch.inference_mode():
            whole = trunk(input_ids=torch.tensor([beginning + row])).last_hidden_state[0, -1]
        assert torch.allclose(found[number], whole, atol=1e-5)
    assert trunk.config._attn_implementation == "sdpa"
    assert can_be_planted(trunk)


def test_each_distinct_prefix_is_one_node(trunk: torch.nn.Module) -> None:
    stem = list(range(10, 40))
    [forest] = plant([[*stem, 1], [*stem, 2, 3], [7, 8]], beginning=2, width=48, most=100)
    assert len(forest.tokens) == 30 + 1 + 2 + 2
    assert len(forest.trees) == 2  # the third shares nothing, so nothing is gained by letting it attend
    assert forest.trees[0][0] == 0
    assert all(before[1] == after[0] for before, after in pairwise(forest.trees))
    for first, last, mask in forest.trees:
        assert mask.shape == (last - first, 2 + last - first)
        assert mask[:, :2].all()


def test_what_shares_little_of_much_stands_apart() -> None:
    """By hand, at width 1: a token's linear work is that of attention between 6 nodes."""
    long, other = [1, 2, *range(10, 30)], [1, 2, *range(40, 60)]
    # Joined: 20 fresh · 6 + (42² - 22²) = 1400; apart: 22 · 6 + 22² = 616.
    assert list(groups([long, other], width=1)) == [[0], [1]]
    # At width 100 the linear work decides: 20 · 600 + 1280 = 13,280 against 22 · 600 + 484 = 13,684.
    assert list(groups([long, other], width=100)) == [[0, 1]]
    assert list(groups([[5], [5]], width=1)) == [[0, 1]]
    assert list(groups([], width=1)) == []
