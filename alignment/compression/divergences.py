"""Divergences of a student's next-token distributions from a teacher's.

Forward KL is Hinton et al. 2015's, reverse KL that of MiniLLM (Gu et al. 2024), and the Jensen–Shannon divergence that
of GKD (Agarwal et al. 2024) with its mixture in the middle.
"""

from math import log

import torch

from alignment.recipe.stages.compression.distil import Divergence


def divergence(
    student: torch.Tensor,
    teacher: torch.Tensor,
    kind: Divergence,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
) -> torch.Tensor:
    """The divergence at each position, in nats; gradients reach the student alone.

    Args:
        student: (T, V) logits.
        teacher: (T, V) logits of the same tokens.
        temperature: what both are divided by.
        top_k: look at the teacher's so many likeliest tokens one by one, and at all others as one outcome.

    Returns:
        (T,) float32 (float64 for float64 input).
    """
    own, wanted = (_logprobs(logits, temperature) for logits in (student, teacher.detach()))
    if top_k is not None and top_k < wanted.shape[-1]:
        chosen = wanted.topk(top_k, dim=-1).indices
        own, wanted = _with_the_rest(own, chosen), _with_the_rest(wanted, chosen)
    if kind == "forward_kl":
        return _kl(wanted, own)
    if kind == "reverse_kl":
        return _kl(own, wanted)
    middle = torch.logaddexp(own, wanted) - log(2)
    return 0.5 * (_kl(own, middle) + _kl(wanted, middle))


def _logprobs(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return (wide / temperature).log_softmax(-1)


def _with_the_rest(logprobs: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """(T, k + 1): those of the chosen tokens, and of all others together."""
    others = logprobs.scatter(-1, chosen, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([logprobs.gather(-1, chosen), others], dim=-1)


def _kl(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (one.exp() * (one - other)).sum(-1)
