"""Sampler and trainer beside each other: how far apart they are, and the weights that make up for it.

Another engine's kernels, another precision, or weights that have changed since draw from a slightly other distribution
than the policy in training. Nobody sees that in a loss: a run that trains on it uncorrected just gets worse.
"""

from collections.abc import Sequence

import torch

from alignment.errors import StageError
from alignment.policy.losses import importance_weights, masked_mean
from alignment.policy.online.batch import Episode
from alignment.recipe.stages.online import OnlineStage

TAIL = 0.99  # quantile of the distances that is a metric beside their mean
LIMITS = {torch.float32: 0.01, torch.bfloat16: 0.1, torch.float16: 0.1}  # nats per token, of our own engines
OTHER_ENGINE = 0.1  # nats per token, an engine with kernels and a precision of its own
OLDER_WEIGHTS = 0.5  # nats per token, answers of weights some steps old
ALARM = 0.5  # share of the limit


def sampling_logprobs(episodes: Sequence[Episode], mask: torch.Tensor) -> torch.Tensor | None:
    """(N, R) log-probabilities with which tokens were drawn; None where the engine does not say for all of them."""
    known = [episode.completion.logprobs for episode in episodes]
    rows = [logprobs for logprobs in known if logprobs is not None]
    if len(rows) < len(known):
        return None
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return padded.to(mask.device)


@torch.no_grad()
def correction(
    logprobs: torch.Tensor, sampled: torch.Tensor, mask: torch.Tensor, settings: OnlineStage, cap: float
) -> torch.Tensor:
    """(B, R) importance weights of tokens that were drawn with the log-probabilities ``sampled`` (B, R).

    The ratio ``exp(logprobs - sampled)`` of each token, or of the whole answer, truncated to ``cap`` (TIS, Yao et al.
    2025), or 0 outside ``[1 / cap, cap]`` (MIS, IcePop).
    """
    old, drawn = torch.where(mask, logprobs, 0.0), torch.where(mask, sampled, 0.0)
    if settings.importance_by == "sequence":
        old, drawn = (part.sum(dim=1, keepdim=True).expand_as(part) for part in (old, drawn))
    if settings.importance == "truncate":
        return importance_weights(old, drawn, cap=cap)
    ratio = (old - drawn).exp()
    return torch.where((ratio <= cap) & (ratio >= 1 / cap), ratio, 0.0)


@torch.no_grad()
def gap_metrics(logprobs: torch.Tensor, sampled: torch.Tensor | None, mask: torch.Tensor) -> dict[str, float]:
    """``sampling_gap``, the mean |log-probability when drawn - when trained| of a token, and ``sampling_gap_p99``, its
    99th percentile, in nats; nothing where the engine does not say."""
    if sampled is None:
        return {}
    apart = (sampled - logprobs).abs()
    tail = torch.quantile(apart[mask].float(), TAIL) if mask.any() else apart.new_zeros(())
    return {"sampling_gap": float(masked_mean(apart, mask)), "sampling_gap_p99": float(tail)}


def gap_limit(settings: OnlineStage, dtype: torch.dtype, cap: float | None) -> float:
    """The mean distance above which a run stops, in nats per token; ``cap`` is that of the importance weights."""
    if settings.max_sampling_gap is not None:
        return settings.max_sampling_gap
    if settings.max_staleness:
        return OLDER_WEIGHTS
    return LIMITS[dtype] if cap is None else max(OTHER_ENGINE, LIMITS[dtype])


def check_gap(metrics: dict[str, float], limit: float, step: int) -> None:
    """Raises StageError where a step's answers are further from the policy in training than ``limit`` allows."""
    gap = metrics.get("sampling_gap", 0.0)
    if not gap <= limit:
        raise StageError(
            f"step {step}: log-probabilities of sampling and training differ by {gap:.4g} nats per token, more than "
            f"max_sampling_gap={limit:g}: the engine samples from another model, or from older weights, than is "
            "trained; set importance_cap: 2.0 for an engine that is known to differ, or look at what serves it"
        )


def gap_alarm(metrics: dict[str, float], limit: float) -> list[str]:
    """The alarm for answers that are nearly as far from the policy as stops a run."""
    gap = metrics.get("sampling_gap", 0.0)
    if gap <= ALARM * limit:
        return []
    tail = metrics["sampling_gap_p99"]
    return [
        f"sampling_gap: {gap:.3g} nats per token between sampling and training ({tail:.3g} at the 99th percentile); "
        f"the run stops above {limit:g}"
    ]
