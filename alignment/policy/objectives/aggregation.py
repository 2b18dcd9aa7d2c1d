"""What each token counts in a minibatch's loss: the means in which losses of one name differ most.

A loss is ``(weights * token losses).sum()``. The weights are of the whole minibatch, so the pieces that it is split
into, for memory or over workers, add up to the same gradient however it is split.
"""

from typing import Literal, TypeAlias

import torch

Aggregation: TypeAlias = Literal["tokens", "step_tokens", "answers", "answer_sums", "longest"]


def aggregation_weights(
    mask: torch.Tensor, how: Aggregation, *, step_tokens: float | torch.Tensor, longest: int
) -> torch.Tensor:
    """(B, T) weights of a minibatch's tokens, 0 where ``mask`` (B, T) is False.

    Args:
        how: "tokens": a mean over the minibatch's tokens (BNPO, PPO). "step_tokens": a mean over as many tokens as a
            minibatch of the step has on average (DAPO, Yu et al. 2025, eq. 8). "answers": a mean over answers of the
            mean over each one's tokens (Shao et al. 2024, eq. 3). "answer_sums": a mean over answers of sums (LUSPO).
            "longest": a sum over answers × ``longest`` (Dr. GRPO, Liu et al. 2025).
        step_tokens: tokens of the whole step over the number of its minibatches.
        longest: the most tokens that an answer may have.

    Raises:
        ValueError: ``how`` is unknown.
    """
    kept = mask.float()
    answers = max(1, len(mask))
    if how == "tokens":
        return kept / kept.sum().clamp(min=1)
    if how == "step_tokens":
        return kept / torch.as_tensor(step_tokens, dtype=torch.float32).clamp(min=1).to(kept.device)
    if how == "answers":
        return kept / kept.sum(dim=1, keepdim=True).clamp(min=1) / answers
    if how == "answer_sums":
        return kept / answers
    if how == "longest":
        return kept / (answers * longest)
    raise ValueError(f"how is {how!r}; it is none of tokens, step_tokens, answers, answer_sums and longest")
