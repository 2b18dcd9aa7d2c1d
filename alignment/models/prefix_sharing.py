"""Each token of a batch is computed once: rows that begin alike share their beginning.

The rows of a preference batch are pairs of answers to one prompt, and every prompt begins with the template's system
message. Causal attention gives equal beginnings equal hidden states, so here a batch becomes a tree of its distinct
prefixes: one sequence of nodes in which each attends to its ancestors alone. Padding is no node. Hidden states and
gradients are those of the plain pass, up to the order of sums; at the length of the quickstart's texts, two thirds of
the work falls away. (The same tree is known from inference, as in Miao et al. 2024, "SpecInfer", section 4.)
"""

import types
from collections.abc import Sequence
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from alignment.models.cpu_attention import NAME as SDPA_FLOAT32
from alignment.models.families import has_plain_attention
from alignment.models.families.head import trunk_of

NODES = {"cpu": 512}  # in one sequence: its attention costs the square, so on a processor short ones pay
NODES_ELSEWHERE = 4096
SAVES = 0.9  # a tree is worth its building and its mask where it costs at most this share of the padded batch
ROUNDING, ROUNDING_ELSEWHERE = {torch.float32: 1e-4, torch.float64: 1e-6}, 5e-2  # of the largest entry of a state
ATTENTION = ("sdpa", SDPA_FLOAT32)  # those that take any mask
SPECIAL = ("past_key_values", "position_ids", "inputs_embeds", "output_hidden_states", "output_attentions")


def share_prefixes(model: Any) -> bool:
    """Has a model's trunk compute each distinct prefix of a batch once, for as long as the model lives.

    Returns whether it does: models without rotary positions, with windowed or linear attention, or with another
    attention implementation than PyTorch's are left as they are, and so is one to which a small tree gives other states
    than the plain pass. Calls with a cache, given positions, embeddings or no padding mask run as before, and so do
    batches whose rows have too little in common for a tree to pay.
    """
    trunk = trunk_of(model)
    if getattr(trunk, "shares_prefixes", False):
        return True
    if not has_plain_attention(trunk) or not _holds_trees(trunk):
        return False
    method = trunk.forward
    function = getattr(method, "__func__", None)  # unbound: a deep copy of the model must not run the original's layers

    def forward(self: Any, input_ids: Any = None, attention_mask: Any = None, **kwargs: Any) -> Any:
        plain = method if function is None else types.MethodType(function, self)
        usual = input_ids is not None and attention_mask is not None and attention_mask.dim() == 2
        special = any(kwargs.get(name) is not None for name in SPECIAL)
        if not usual or special or self.config._attn_implementation not in ATTENTION:
            return plain(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        kwargs = {name: value for name, value in kwargs.items() if name not in SPECIAL}
        one_tree = getattr(self, "one_tree", False)
        return _shared(plain, self.config, input_ids, attention_mask.bool(), kwargs | {"use_cache": False}, one_tree)

    trunk.forward = types.MethodType(forward, trunk)
    trunk.shares_prefixes = True
    return True


@torch.no_grad()
def _holds_trees(trunk: Any) -> bool:
    """Whether a trunk gives two rows that begin alike the same states as one tree; not tried where it is in parts."""
    if any(isinstance(parameter, DTensor) for parameter in trunk.parameters()):
        return True
    if trunk.config._attn_implementation not in ATTENTION:
        return True  # its calls are never made trees as long as that stands
    rows = [[1, 2, 3, 4], [1, 2, 5]]
    (tree,), (first, second) = grow(rows, [[0, 1]])
    device = trunk.device
    modes = [(module, module.training) for module in trunk.modules()]
    trunk.eval()
    try:
        nodes = trunk(
            input_ids=torch.tensor([tree.tokens], device=device),
            attention_mask=tree.ancestor_mask().to(device)[None, None],
            position_ids=torch.tensor([tree.depths], device=device),
            use_cache=False,
        ).last_hidden_state[0]
        plain = [
            trunk(input_ids=torch.tensor([row], device=device), use_cache=False).last_hidden_state[0] for row in rows
        ]
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):  # it takes no such mask or positions
        return False
    finally:
        for module, training in modes:
            module.training = training
    close = ROUNDING.get(nodes.dtype, ROUNDING_ELSEWHERE) * nodes.abs().max().item()
    pairs = zip((nodes[first], nodes[second]), plain, strict=True)
    return all(torch.allclose(found, expected, rtol=0, atol=close) for found, expected in pairs)


def one_call_a_pass(model: Any) -> None:
    """Has a trunk that shares prefixes compute one tree for a whole batch, or none: never several.

    For sharded models, whose workers gather a layer's weights together each time that it is called.
    """
    trunk_of(model).one_tree = True


def _shared(
    plain: Any, config: Any, input_ids: torch.Tensor, row_mask: torch.Tensor, kwargs: dict[str, Any], one_tree: bool
) -> Any:
    """input_ids and row_mask (B, T) → the trunk's output with last_hidden_state (B, T, D), 0 at padding of a tree."""
    device = input_ids.device
    rows = [ids[mask].tolist() for ids, mask in zip(input_ids.cpu(), row_mask.cpu(), strict=True)]
    groups = packs(rows, NODES.get(device.type, NODES_ELSEWHERE))
    trees, paths = grow(rows, groups)
    several = one_tree and len(trees) > 1
    if several or not pays([len(tree.tokens) for tree in trees], len(rows), row_mask.shape[1], config):
        return plain(input_ids=input_ids, attention_mask=row_mask, **kwargs)
    places: list[list[int]] = [[] for _ in rows]  # of each row's tokens among all nodes
    outputs: list[Any] = []
    before = 0
    for members, tree in zip(groups, trees, strict=True):
        for row in members:
            places[row] = [before + node for node in paths[row]]
        output = plain(
            input_ids=torch.tensor([tree.tokens], device=device),
            attention_mask=tree.ancestor_mask().to(device)[None, None],
            position_ids=torch.tensor([tree.depths], device=device),
            **kwargs,
        )
        outputs.append(output)
        before += len(tree.tokens)
    index = torch.tensor([place for row in places for place in row], device=device)

    def spread(parts: list[torch.Tensor]) -> torch.Tensor:
        """The trees' values (nodes, …) as those of the rows' tokens (B, T, …), 0 at padding."""
        nodes = torch.cat(parts)
        flat = nodes.new_zeros(*row_mask.shape, nodes.shape[-1])
        return flat.masked_scatter(row_mask[..., None], _gathered(nodes, index))

    output.last_hidden_state = spread([one.last_hidden_state[0] for one in outputs])
    if getattr(output, "router_logits", None):  # of each layer, (tokens, experts)
        layers = zip(*(one.router_logits for one in outputs), strict=True)
        output.router_logits = tuple(spread(list(layer)).flatten(0, 1) for layer in layers)
    return output


def _gathered(nodes: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """nodes (N, D), index (M,) → (M, D), with a gradient that is summed in one order.

    Several rows share a node, and each adds to its gradient. A GPU's ``index_select`` adds in whatever order its
    threads come; its advanced indexing sorts first. A processor's does the reverse.
    """
    return nodes[index] if nodes.is_cuda else nodes.index_select(0, index)


def grow(rows: list[list[int]], groups: list[list[int]]) -> tuple[list["PrefixTree"], list[list[int]]]:
    """A tree of each group's rows, and each row's nodes in its tree."""
    paths: list[list[int]] = [[] for _ in rows]
    trees = []
    for members in groups:
        trees.append(PrefixTree())
        for row in members:
            paths[row] = trees[-1].add(rows[row])
    return trees, paths


def pays(nodes: list[int], rows: int, width: int, config: Any) -> bool:
    """Whether trees of so many ``nodes`` cost fewer operations than ``rows`` padded to ``width``.

    A token costs two operations a weight of the trunk's layers and, to look at one key, four for each number that
    queries have; a tree's nodes look at all nodes, visible or not, and a padded row's tokens at all of the row.
    """
    text = config.get_text_config()
    heads = text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // heads
    shared = getattr(text, "num_key_value_heads", None) or heads
    inner = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    products = 2 * text.hidden_size * size * (heads + shared) + 3 * text.hidden_size * inner
    look = 4 * heads * size

    def cost(sequences: list[int]) -> int:
        return sum(length * (2 * products + length * look) for length in sequences)

    return cost(nodes) <= SAVES * cost([width] * rows)


def packs(rows: list[list[int]], limit: int) -> list[list[int]]:
    """The rows' numbers in groups of at most ``limit`` distinct prefixes (or one row); rows that begin alike meet."""
    groups: list[list[int]] = []
    size, last = 0, list[int]()
    for number in sorted(range(len(rows)), key=rows.__getitem__):
        fresh = len(rows[number]) - common_prefix(last, rows[number])
        if not groups or size + fresh > limit:
            groups.append([])
            size, fresh = 0, len(rows[number])
        groups[-1].append(number)
        size, last = size + fresh, rows[number]
    return groups


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two rows begin with alike."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((position for position, (a, b) in pairs if a != b), min(len(left), len(right)))


class PrefixTree:
    """The distinct prefixes of some rows. A node is a token after one particular beginning; parents come first."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.depths: list[int] = []
        self.parents: list[int] = []
        self._known: dict[tuple[int, int], int] = {}

    def add(self, row: list[int]) -> list[int]:
        """The nodes of a row's tokens, made where they are new."""
        path, parent = [], -1
        for depth, token in enumerate(row):
            node = self._known.setdefault((parent, token), len(self.tokens))
            if node == len(self.tokens):
                self.tokens.append(token)
                self.depths.append(depth)
                self.parents.append(parent)
            path.append(node)
            parent = node
        return path

    def ancestor_mask(self) -> torch.Tensor:
        """(N, N) bool: row i is True at i and at all that lie on its way from the root."""
        mask = torch.eye(len(self.tokens), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                mask[node] |= mask[parent]
        return mask
