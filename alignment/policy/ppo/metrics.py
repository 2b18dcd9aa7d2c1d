"""What a step of PPO says about itself, and the alarm for a score that rises while answers get worse."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import t as student
from scipy.stats import ttest_1samp

from alignment.policy.losses import kl_estimate, masked_mean
from alignment.policy.online.batch import Experience
from alignment.policy.online.off_policy import gap_metrics

FALSE_ALARMS = 0.05  # of a run whose held-out win rate does not fall
LOOK_NOISE = 0.05  # least standard deviation of a win rate between looks: two that are equal by chance are no certainty


def experience_metrics(experience: Experience, *, kl_coefficient: float) -> dict[str, float]:
    """Metrics of one step's answers, before the update.

    ``score`` is what the reward gave, in its own units; ``reward`` is the score minus all penalties, in the same
    units; ``kl`` is k1 summed over an answer, ``kl_k3`` the same with k3; ``entropy`` is nats per token;
    ``explained_variance`` is that of the returns by the values.
    """
    mask = experience.mask
    lengths = mask.sum(dim=1).float()
    kl, k3 = (
        torch.where(mask, kl_estimate(experience.logprobs, experience.ref_logprobs, estimator=estimator), 0.0)
        .sum(dim=1)
        .mean()
        for estimator in ("k1", "k3")
    )
    penalty = kl_coefficient - experience.kl_loss_coefficient
    values, returns = experience.values[mask], experience.returns[mask]
    spread = returns.var(correction=0)
    explained = 1 - (returns - values).var(correction=0) / spread if spread > 0 else spread.new_zeros(())
    metrics = {
        "score": experience.raw_scores.mean(),
        "score_deviation": experience.raw_scores.std(correction=0),
        "reward": experience.score_mean + experience.score_unit * (experience.scores.mean() - penalty * kl),
        "kl": kl,
        "kl_k3": k3,
        "entropy": masked_mean(experience.entropy, mask),
        "explained_variance": explained,
        "length": lengths.mean(),
        "length_max": lengths.max(),
    }
    finished = sum(episode.completion.finished for episode in experience.episodes)
    numbers = {name: float(value) for name, value in metrics.items()}
    numbers |= {"eos_rate": finished / len(experience.episodes), "kl_coefficient": kl_coefficient}
    numbers["score_unit"] = experience.score_unit
    return numbers | gap_metrics(experience.logprobs, experience.sampling_logprobs, mask)


def overoptimisation(
    scores: Sequence[float], held_out: Sequence[float], outcomes: Sequence[Sequence[float]] | None = None
) -> str | None:
    """The alarm for a score that rises while the held-out win rate falls: halves of the run, compared by their means.

    The two are of the same steps (or evaluations), oldest first; fewer than four say nothing. ``outcomes`` are what the
    win rates are the means of, one row a look with one outcome for each prompt, the same prompts at every look.

    The fall is tested: over prompts, paired, where their outcomes are given, for looks at one policy's way are not
    independent of each other; else over looks. Whoever looks after every evaluation tests again and again, so the k-th
    look may err with a chance of ``FALSE_ALARMS`` / k (k + 1), which is ``FALSE_ALARMS`` for a whole run, however long.
    """
    if len(scores) != len(held_out):
        raise ValueError(f"{len(scores)} scores and {len(held_out)} win rates are not of the same steps")
    if len(scores) < 4:
        return None
    half = len(scores) // 2
    (score_before, score_after), (rate_before, rate_after) = (
        (sum(series[:half]) / half, sum(series[-half:]) / half) for series in (scores, held_out)
    )
    look = len(scores) - 3
    series = np.asarray(held_out if outcomes is None else outcomes, dtype=np.float64)
    chance = _chance_of_fall(series[:half], series[-half:])
    if score_after > score_before and chance <= FALSE_ALARMS / (look * (look + 1)):
        return (
            f"overoptimisation: the score rose from {score_before:.3f} to {score_after:.3f} "
            f"while the held-out win rate fell from {rate_before:.3f} to {rate_after:.3f}"
        )
    return None


def _chance_of_fall(before: NDArray[np.float64], after: NDArray[np.float64]) -> float:
    """The one-sided p-value of no fall: over prompts of (looks, prompts), over looks of (looks,)."""
    if before.ndim == 1:
        free = before.size + after.size - 2
        scatter = (before.var() * before.size + after.var() * after.size) / free
        error = np.sqrt(max(scatter, LOOK_NOISE**2) * (1 / before.size + 1 / after.size))
        return float(student.cdf((after.mean() - before.mean()) / error, free))
    changes = after.mean(axis=0) - before.mean(axis=0)
    if changes.size < 2 or np.ptp(changes) == 0:  # nothing scatters: as sure as one prompt in all of them
        return 1 / (changes.size + 1) if changes.mean() < 0 else 1.0
    return float(ttest_1samp(changes, 0.0, alternative="less").pvalue)
