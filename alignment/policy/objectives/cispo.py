"""CISPO: clipped importance weights beside the policy gradient (MiniMax 2025, eq. 4; Khatri et al. 2025, ScaleRL)."""

import torch

from alignment.policy.objectives.terms import Options, Terms, TokenStats, log_ratio


def cispo(terms: Terms, options: Options) -> tuple[torch.Tensor, TokenStats]:
    """``-sg(min(ratio, clip_high)) * advantage * log-probability`` of each token.

    The weight carries no gradient, so a token beyond the bound still has one: what is bounded is how much it weighs.
    ``clip_high`` is the bound of the weight itself, well above 1, not a distance from it.
    """
    ratio = log_ratio(terms, options.level).detach().exp()
    advantages = torch.where(terms.mask, terms.advantages, 0.0)
    logprobs = torch.where(terms.mask, terms.logprobs, 0.0)
    loss = -ratio.clamp(max=options.clip_high) * advantages * logprobs
    return loss, {"clip_fraction_high": (ratio > options.clip_high) & (advantages > 0)}
