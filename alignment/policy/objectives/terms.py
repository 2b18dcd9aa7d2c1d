"""What a loss is made of, and the probability ratio that most of them share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

Level: TypeAlias = Literal["token", "sequence", "answer"]
TokenStats: TypeAlias = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Terms:
    """Of every token of some answers, (B, T): only where ``mask`` is True do they mean anything.

    ``logprobs`` are the policy's in training and carry the gradient, ``old_logprobs`` those that the step began with.
    ``weights`` are importance weights of tokens that other weights or other kernels drew, None where nothing else did.
    """

    logprobs: torch.Tensor
    old_logprobs: torch.Tensor
    advantages: torch.Tensor
    mask: torch.Tensor
    weights: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Options:
    """The settings of losses; each reads its own. ``level`` says what a ratio is of, see :func:`log_ratio`."""

    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    level: Level = "token"
    gate_temperatures: tuple[float, float] = (1.0, 1.05)


TokenLoss: TypeAlias = Callable[[Terms, Options], tuple[torch.Tensor, TokenStats]]
"""The loss of each token, (B, T), and figures of each token, (B, T) and detached, whose means are metrics."""


def log_ratio(terms: Terms, level: Level) -> torch.Tensor:
    """The logarithm of the probability ratio, (B, T) and 0 where masked out.

    "token": each token's. "sequence": the geometric mean over the answer (Zheng et al. 2025, GSPO, eq. 7). "answer":
    the whole answer's, the product over its tokens. With the last two, an answer's tokens have it in common.
    """
    mask = terms.mask.bool()
    apart = torch.where(mask, terms.logprobs - terms.old_logprobs, 0.0)
    if level == "token":
        return apart
    whole = apart.sum(dim=1, keepdim=True)
    if level == "sequence":
        whole = whole / mask.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.where(mask, whole.expand_as(apart), 0.0)
