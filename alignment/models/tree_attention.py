"""Many small trees of prefixes in one pass of a trunk, behind one beginning that is computed once.

A batch of questions to a judge is made of groups that share much inside (both orders of a pair, pairs of one prompt)
and nothing but the beginning with each other. Linear layers take all their tokens at once; attention goes tree by tree,
so that it costs the square of a tree's size and not of the batch's. Hidden states are those of the plain pass, up to
the order of sums.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from alignment.errors import StageError
from alignment.models.adapter_kinds.soft_prompt import soft_prompt_of
from alignment.models.families import has_plain_attention
from alignment.models.prefix_sharing import PrefixTree, common_prefix

NAME = "sdpa_in_trees"
NODES = {"cpu": 1024}  # in one pass: more make its matrix products no quicker
NODES_ELSEWHERE = 8192
_TREES: ContextVar[tuple[list[tuple[int, int, torch.Tensor]], list[Any]]] = ContextVar("trees")


@dataclass(slots=True)
class Forest:
    """Trees one after another: tokens, depths, where each tree begins and ends, and the place of each row's last token.

    ``trees`` holds (begin, end, mask (end - begin, beginning + end - begin) bool; True: is attended to).
    """

    tokens: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    trees: list[tuple[int, int, torch.Tensor]] = field(default_factory=list)
    ends: dict[int, int] = field(default_factory=dict)

    def add(self, tree: PrefixTree, ends: dict[int, int], beginning: int) -> None:
        """Plants a tree whose rows (by number) end at the nodes ``ends``, behind ``beginning`` tokens."""
        begin = len(self.tokens)
        before = torch.ones(len(tree.tokens), beginning, dtype=torch.bool)
        self.tokens += tree.tokens
        self.depths += tree.depths
        self.trees.append((begin, len(self.tokens), torch.cat([before, tree.ancestor_mask()], dim=1)))
        self.ends |= {row: begin + node for row, node in ends.items()}


def can_be_planted(trunk: Any) -> bool:
    """Whether a trunk can be given forests: it attends plainly, and lets its attention be chosen."""
    if (
        soft_prompt_of(trunk) is not None
        or not has_plain_attention(trunk)
        or trunk.config._attn_implementation != "sdpa"
    ):
        return False
    forest = next(plant([[1, 2]], beginning=0, width=1, most=2))
    try:
        last_states(trunk, forest, beginning=0, cache=DynamicCache(config=trunk.config))
    except (StageError, AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return False
    return True


def plant(rows: Sequence[list[int]], *, beginning: int, width: int, most: int) -> Iterator[Forest]:
    """The rows' forests, each of at most ``most`` nodes or one tree; ``width`` is the size of a hidden state."""
    forest = Forest()
    for members in groups(rows, width):
        tree = PrefixTree()
        ends = {row: tree.add(rows[row])[-1] for row in members}
        if forest.tokens and len(forest.tokens) + len(tree.tokens) > most:
            yield forest
            forest = Forest()
        forest.add(tree, ends, beginning)
    if forest.tokens:
        yield forest


def groups(rows: Sequence[list[int]], width: int) -> Iterator[list[int]]:
    """The rows' numbers in groups that are worth a tree of their own.

    A row that begins like the one before it, in the order of their tokens, saves the linear layers' work on what it
    shares (about 24 · width² operations a token and layer) and adds attention between all of the tree (4 · width for
    each two of its nodes): it joins where the first outweighs the second.
    """
    linear = 6 * width  # the work of one token, in units of the attention between two
    members: list[int] = []
    size, last = 0, list[int]()
    for number in sorted(range(len(rows)), key=lambda number: rows[number]):
        row = rows[number]
        shared = common_prefix(last, row)
        fresh = len(row) - shared
        joined = fresh * linear + (size + fresh) ** 2 - size**2
        apart = len(row) * linear + len(row) ** 2
        if members and joined > apart:
            yield members
            members, size, fresh = [], 0, len(row)
        members.append(number)
        size, last = size + fresh, row
    if members:
        yield members


@torch.inference_mode()
def last_states(trunk: Any, forest: Forest, *, beginning: int, cache: Any) -> torch.Tensor:
    """(rows, D): the hidden states of the rows' last tokens, in the order of ``forest.ends``.

    ``cache`` holds the keys and values of the ``beginning`` tokens, and holds no more afterwards. Raises StageError for
    a trunk that does not let its attention be chosen.
    """
    device = trunk.device
    trees = [(begin, end, mask.to(device)[None, None]) for begin, end, mask in forest.trees]
    with _in_trees(trunk, trees) as layers:
        output = trunk(
            input_ids=torch.tensor([forest.tokens], device=device),
            attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device),  # each tree has its own
            position_ids=torch.tensor([forest.depths], device=device) + beginning,
            past_key_values=cache,
            use_cache=True,
        )
    if not layers:  # nobody looked at the trees, so the states are of something else
        raise StageError(f"{type(trunk).__name__} attends in a way of its own; judge with another model")
    cache.crop(-len(forest.tokens))  # a negative number: so many are taken off
    places = torch.tensor(list(forest.ends.values()), device=device)
    states: torch.Tensor = output.last_hidden_state[0].index_select(0, places)
    return states


def _attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **options: Any
) -> tuple[torch.Tensor, None]:
    """query (1, heads, N, D), key and value (1, heads, beginning + N, D) → (1, N, heads, D), tree by tree."""
    trees, layers = _TREES.get()
    layers.append(module)
    before = key.shape[2] - query.shape[2]
    parts = []
    for begin, end, mask in trees:
        own = [
            torch.cat([states[:, :, :before], states[:, :, before + begin : before + end]], dim=2)
            for states in (key, value)
        ]
        part, _ = sdpa_attention_forward(module, query[:, :, begin:end], *own, mask, **options)
        parts.append(part)
    return torch.cat(parts, dim=1), None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


@contextmanager
def _in_trees(trunk: Any, trees: list[tuple[int, int, torch.Tensor]]) -> Iterator[list[Any]]:
    """The trunk attends within these trees for as long as the context lasts; yields the layers that did."""
    layers: list[Any] = []
    token = _TREES.set((trees, layers))
    trunk.set_attn_implementation(NAME)
    try:
        yield layers
    finally:
        trunk.set_attn_implementation("sdpa")
        _TREES.reset(token)
