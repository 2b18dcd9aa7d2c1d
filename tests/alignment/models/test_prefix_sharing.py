"""Sharing beginnings changes what is computed, not what comes out: the plain pass is the reference."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig, MistralConfig

from alignment.models import prefix_sharing
from alignment.models.prefix_sharing import PrefixTree, packs, pays, share_prefixes

ROWS = [[5, 6, 7, 8], [5, 6, 9], [5, 6], [5, 6, 7, 8], [4, 6, 7, 8, 1, 2, 3], [5]]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(str(tiny_model), dtype=torch.float32).eval()


def batch(rows: list[list[int]], *, left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.bool)
    for number, row in enumerate(rows):
        at = slice(width - len(row), width) if left else slice(0, len(row))
        ids[number, at], mask[number, at] = torch.tensor(row), True
    return ids, mask


def test_a_tree_by_hand() -> None:
    tree = PrefixTree()
    assert [tree.add(row) for row in ([5, 6, 7], [5, 6, 8], [5, 6], [6])] == [[0, 1, 2], [0, 1, 3], [0, 1], [4]]
    assert tree.tokens == [5, 6, 7, 8, 6]
    assert tree.depths == [0, 1, 2, 2, 0]
    expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [0, 0, 0, 0, 1]]
    assert tree.ancestor_mask().int().tolist() == expected


def test_packs_by_hand() -> None:
    """Sorted: [1 2], [1 2 3], [1 2 4], [7 8 9 9]; the fourth distinct prefix of the first three still fits."""
    rows = [[7, 8, 9, 9], [1, 2, 3], [1, 2], [1, 2, 4]]
    assert packs(rows, 4) == [[2, 1, 3], [0]]
    assert packs(rows, 3) == [[2, 1], [3], [0]]
    assert packs(rows, 1) == [[2], [1], [3], [0]]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=8), st.integers(1, 12))
def test_packs_hold_every_row_once_and_keep_the_limit(rows: list[list[int]], limit: int) -> None:
    groups = packs(rows, limit)
    assert sorted(number for group in groups for number in group) == list(range(len(rows)))
    for group in groups:
        tree = PrefixTree()
        for number in group:
            tree.add(rows[number])
        assert len(tree.tokens) <= limit or len(group) == 1
        assert len(tree.tokens) == len({tuple(rows[n][: k + 1]) for n in group for k in range(len(rows[n]))})


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("nodes", [512, 5])
def test_hidden_states_and_gradients_are_the_plain_ones(
    model: Any, monkeypatch: pytest.MonkeyPatch, left: bool, nodes: int
) -> None:
    monkeypatch.setitem(prefix_sharing.NODES, "cpu", nodes)
    monkeypatch.setattr(prefix_sharing, "SAVES", float("inf"))
    ids, mask = batch(ROWS, left=left)
    torch.manual_seed(0)
    weights = torch.randn(*ids.shape, model.config.hidden_size) * mask[..., None]
    found = []
    for shared in (False, True):
        one = copy.deepcopy(model)
        if shared:
            assert share_prefixes(one)
        hidden = one.base_model(input_ids=ids, attention_mask=mask.long(), use_cache=False).last_hidden_state
        (hidden * weights).sum().backward()
        found.append((hidden.detach(), {name: p.grad for name, p in one.named_parameters()}))
    (plain, plain_grads), (shared_hidden, shared_grads) = found
    torch.testing.assert_close(shared_hidden[mask], plain[mask], atol=1e-5, rtol=1e-5)
    assert (shared_hidden[~mask] == 0).all()
    assert plain_grads.keys() == shared_grads.keys()
    for name, grad in plain_grads.items():
        torch.testing.assert_close(shared_grads[name], grad, atol=1e-4, rtol=1e-4, msg=name)


def test_what_a_tree_costs_by_hand() -> None:
    """Hidden 16, 2 heads of 8, 1 key head, inner 32: 768 + 1536 weights, so 4608 operations a token and 64 a key."""
    config = LlamaConfig(hidden_size=16, intermediate_size=32, num_attention_heads=2, num_key_value_heads=1)
    padded = 4 * 10 * (4608 + 10 * 64)  # 209,920: nine tenths of it are 188,928
    assert 34 * (4608 + 34 * 64) == 230_656 > padded
    assert 30 * (4608 + 30 * 64) == 195_840
    assert 29 * (4608 + 29 * 64) == 187_456
    assert [pays([nodes], 4, 10, config) for nodes in (34, 30, 29)] == [False, False, True]
    assert pays([15, 15], 4, 10, config)  # two short trees: 167,040


def test_rows_with_nothing_in_common_take_the_plain_pass(model: Any) -> None:
    one = copy.deepcopy(model)
    share_prefixes(one)
    ids, mask = batch([[5, 6, 7, 8], [6, 7, 8, 9], [7, 8, 9]])
    plain = model(input_ids=ids, attention_mask=mask.long()).logits
    assert torch.equal(one(input_ids=ids, attention_mask=mask.long()).logits, plain)


def test_a_reward_model_scores_the_same(model: Any) -> None:
    torch.manual_seed(1)
    config = copy.deepcopy(model.config)
    config.num_labels, config.pad_token_id = 1, 0
    reward = AutoModelForSequenceClassification.from_config(config).eval()
    ids, mask = batch(ROWS)
    plain = reward(input_ids=ids, attention_mask=mask.long()).logits
    assert share_prefixes(reward)
    torch.testing.assert_close(reward(input_ids=ids, attention_mask=mask.long()).logits, plain, atol=1e-5, rtol=1e-5)


def test_generation_goes_on_as_before(model: Any) -> None:
    one = copy.deepcopy(model)
    share_prefixes(one)
    ids, mask = batch([[5, 6, 7, 8], [5, 6, 9]], left=True)
    arguments = {"input_ids": ids, "attention_mask": mask.long(), "max_new_tokens": 5, "do_sample": False}
    assert torch.equal(one.generate(**arguments), model.generate(**arguments))


def test_models_whose_attention_is_not_causal_and_whole_are_left_alone() -> None:
    small = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    windowed = AutoModelForCausalLM.from_config(MistralConfig(**small, **heads, sliding_window=8))
    assert not share_prefixes(windowed)
    assert share_prefixes(AutoModelForCausalLM.from_config(LlamaConfig(**small, **heads)))
    eager = AutoModelForCausalLM.from_config(LlamaConfig(**small, **heads), attn_implementation="eager").eval()
    ids, mask = batch(ROWS[:2])
    plain = eager(input_ids=ids, attention_mask=mask.long()).logits
    share_prefixes(eager)
    assert torch.equal(eager(input_ids=ids, attention_mask=mask.long()).logits, plain)


def test_a_copy_runs_its_own_layers(model: Any) -> None:
    """A frozen reference is a deep copy of the policy: once the policy has moved, they must differ."""
    one = copy.deepcopy(model)
    share_prefixes(one)
    share_prefixes(one)  # a second time changes nothing
    frozen = copy.deepcopy(one)
    ids, mask = batch(ROWS[:2])
    before = frozen(input_ids=ids, attention_mask=mask.long()).logits
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.mul_(1.5)
    assert torch.equal(frozen(input_ids=ids, attention_mask=mask.long()).logits, before)
    assert not torch.allclose(one(input_ids=ids, attention_mask=mask.long()).logits, before)
