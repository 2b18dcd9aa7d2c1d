"""Episodes, and the tensors made of them: what the parts of a training hand to one another.

A batch is right-padded, so what comes after a token cannot touch it. Prompts cost a forward pass but no logits: hidden
states are picked at response tokens first.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from alignment.distributed.workers import Team
from alignment.records import EpisodeTurn, Prompt
from alignment.rollouts.engine import Completion


@dataclass(frozen=True, slots=True)
class Episode:
    """A prompt and one answer to it, or all turns that followed it.

    Where an environment answered, ``drawn_mask`` says which tokens of the completion the policy drew (None: all of
    them), ``turns`` are what was said, and ``reward`` is the environment's.
    """

    prompt: Prompt
    prompt_ids: tuple[int, ...]
    completion: Completion
    drawn_mask: tuple[bool, ...] | None = None
    turns: tuple[EpisodeTurn, ...] = ()
    reward: float = 0.0

    @property
    def length(self) -> int:
        """Tokens of the prompt and of all that followed it."""
        return len(self.prompt_ids) + len(self.completion.tokens)

    @property
    def learned_mask(self) -> tuple[bool, ...]:
        """Which tokens after the prompt are the policy's own."""
        return (True,) * len(self.completion.tokens) if self.drawn_mask is None else self.drawn_mask

    @property
    def drawn_tokens(self) -> int:
        """How many tokens the policy drew."""
        return sum(self.learned_mask)


@dataclass(frozen=True, slots=True)
class Tokens:
    """Episodes as tensors: B rows, L input tokens, R response tokens.

    ``ids`` (B, L) int64 holds prompt and response without its last token, which predicts nothing; ``ids_mask`` (B, L)
    says which are there. ``labels`` (B, R) int64 are the response's tokens, ``mask`` (B, R) says which of them the
    policy drew (none of an observation's), and ``places`` (B, R) where in ``ids`` the state lies that chooses each.
    """

    ids: torch.Tensor
    ids_mask: torch.Tensor
    labels: torch.Tensor
    mask: torch.Tensor
    places: torch.Tensor

    def states(self, hidden: torch.Tensor) -> torch.Tensor:
        """The hidden states (M, D) that choose the M kept response tokens, out of (B, L, D)."""
        rows, columns = self.mask.nonzero(as_tuple=True)
        return hidden[rows, self.places[rows, columns]]

    def scatter(self, flat: torch.Tensor) -> torch.Tensor:
        """Values of the M kept tokens (M,) back into (B, R), 0 elsewhere; carries gradients."""
        return flat.new_zeros(self.mask.shape).masked_scatter(self.mask, flat)


def collate(episodes: Sequence[Episode], device: torch.device) -> Tokens:
    """Pads episodes on the right. The padding's token id is 0 and is never looked at."""
    ids = pad([(*e.prompt_ids, *e.completion.tokens[:-1]) for e in episodes])
    ids_mask = torch.arange(ids.shape[1]) < torch.tensor([e.length - 1 for e in episodes])[:, None]
    labels = pad([e.completion.tokens for e in episodes])
    columns = torch.arange(labels.shape[1])
    mask = pad([e.learned_mask for e in episodes]).bool()
    first = torch.tensor([len(e.prompt_ids) - 1 for e in episodes])
    places = torch.where(mask, first[:, None] + columns, 0)
    return Tokens(*(tensor.to(device) for tensor in (ids, ids_mask, labels, mask, places)))


def pad(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Rows of token ids as one (B, longest) int64 tensor, 0 after each row's end."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])


def in_order(indices: Sequence[int], episodes: Sequence[Episode]) -> list[int]:
    """The ``indices``, longest first, like lengths and answers to one prompt together.

    A prompt's answers stand behind the longest of them: their common beginning is then computed once.
    """
    longest: dict[tuple[int, ...], int] = {}
    for index in indices:
        prompt = episodes[index].prompt_ids
        longest[prompt] = max(longest.get(prompt, 0), episodes[index].length)

    def place(index: int) -> tuple[int, tuple[int, ...], int, int]:
        prompt = episodes[index].prompt_ids
        return -longest[prompt], prompt, -episodes[index].length, index

    return sorted(indices, key=place)


def by_length(indices: Sequence[int], episodes: Sequence[Episode], size: int) -> list[list[int]]:
    """Pieces of at most ``size`` of the ``indices``, in that order."""
    ordered = in_order(indices, episodes)
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def split_minibatches(count: int, number: int, seed: int) -> list[list[int]]:
    """The places 0 … ``count - 1`` at random in ``number`` minibatches of equal size.

    A step has one such split, for its experience and for all of its epochs. Rounding hangs on which rows are computed
    together, and in bfloat16 it moves the ratio of a token by up to a fifth, as far as a clip: with the same rows
    together before the update and in it, a ratio is what the update did, and exactly 1 where it did nothing.
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    size = count // number
    return [order[start : start + size] for start in range(0, count, size)]


def dealt(
    indices: Sequence[int], episodes: Sequence[Episode], size: int, team: Team, *, alike: bool
) -> tuple[list[list[int]], list[list[int]]]:
    """A worker's pieces of the ``indices``, and those that it passes over for the others' sake alone.

    Where weights are in parts, workers gather them together, pass for pass, and have to make equally many (``alike``):
    one that has fewer pieces than the first worker reads the shortest row again, and nothing may come of that.
    """
    ordered = in_order(indices, episodes)
    own = by_length(team.dealt(ordered), episodes, size)
    most = math.ceil(math.ceil(len(ordered) / team.workers) / size)
    return own, [ordered[-1:]] * (most - len(own) if alike else 0)


@dataclass(slots=True)
class Experience:
    """A step's episodes, and what is known of each response token: (N, R) float32, 0 where ``mask`` is False.

    ``values``, ``logprobs`` and ``entropy`` are those before the step's first update. ``scores`` (N,) are what is
    learned from, penalties included; ``raw_scores`` (N,) are what the reward gave. A score s stands for
    ``score_mean + score_unit * s`` of the reward's own. ``kl_loss_coefficient`` weighs the KL in the loss, and is 0
    where the penalty is in the reward.
    """

    episodes: list[Episode]
    scores: torch.Tensor
    mask: torch.Tensor
    logprobs: torch.Tensor
    ref_logprobs: torch.Tensor
    sampling_logprobs: torch.Tensor | None
    values: torch.Tensor
    entropy: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor
    raw_scores: torch.Tensor
    weights: torch.Tensor | None = None
    score_mean: float = 0.0
    score_unit: float = 1.0
    kl_loss_coefficient: float = 0.0
