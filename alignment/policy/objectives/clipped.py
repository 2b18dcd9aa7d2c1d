"""The clipped surrogate: PPO's loss, and that of GRPO, BNPO, Dr. GRPO, DAPO, GSPO, LUSPO and RLOO."""

import torch

from alignment.policy.objectives.terms import Options, Terms, TokenStats, log_ratio


def clipped(terms: Terms, options: Options) -> tuple[torch.Tensor, TokenStats]:
    """The surrogate, negated (Schulman et al. 2017, eq. 7), of each token.

    The ratio is clipped to ``[1 - clip_low, 1 + clip_high]``; a higher upper bound lets unlikely tokens grow (Yu et al.
    2025, DAPO, eq. 10). With ``dual_clip`` c > 1 the surrogate of a token with a negative advantage is at least ``c *
    advantage``, however large the ratio (Ye et al. 2020, eq. 5; INTELLECT-2's two-sided clip).

    Figures: ``clip_fraction_low`` and ``clip_fraction_high``, whether a bound stops the token's gradient, and
    ``dual_clip_fraction``.
    """
    advantages = torch.where(terms.mask, terms.advantages, 0.0)
    ratio = log_ratio(terms, options.level).exp()
    plain = ratio * advantages
    bounded = ratio.clamp(1 - options.clip_low, 1 + options.clip_high) * advantages
    surrogate = torch.minimum(plain, bounded)
    floored = torch.zeros_like(terms.mask)
    if options.dual_clip is not None:
        if options.dual_clip <= 1:
            raise ValueError(f"dual_clip is {options.dual_clip}; it must be above 1")
        floor = options.dual_clip * advantages
        floored = (advantages < 0) & (surrogate < floor)
        surrogate = torch.where(advantages < 0, torch.maximum(surrogate, floor), surrogate)
    stopped = bounded < plain
    stats = {
        "clip_fraction_low": stopped & (advantages < 0),
        "clip_fraction_high": stopped & (advantages > 0),
        "dual_clip_fraction": floored,
    }
    return -surrogate, stats
