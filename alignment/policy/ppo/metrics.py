"""What a step says about itself, and the alarms for the ways in which PPO is known to go wrong."""

from collections.abc import Sequence

import torch

from alignment.policy.losses import kl_estimate, masked_mean
from alignment.policy.ppo.batch import Experience
from alignment.policy.ppo.invariants import sampling_gap

WINDOW = 3  # steps that must agree before an alarm
KL_RUNAWAY = 50.0  # nats per answer: the policy gives its own answers e^50 times the reference's probability
NEGATIVE_KL = -0.5  # nats per answer, mean of k1: impossible on average, unless tokens come from elsewhere
ENTROPY_COLLAPSE = 0.1  # share of the first step's entropy
LENGTH_BLOW_UP = 2.0  # times the first step's length


def experience_metrics(experience: Experience, *, kl_coefficient: float) -> dict[str, float]:
    """Metrics of one step's answers, before the update.

    ``kl`` is k1 summed over an answer, ``kl_k3`` the same with k3; ``reward`` is the score minus the KL penalty;
    ``entropy`` is nats per token; ``explained_variance`` is that of the returns by the values.
    """
    mask = experience.mask
    lengths = mask.sum(dim=1).float()
    kl, k3 = (
        torch.where(mask, kl_estimate(experience.logprobs, experience.ref_logprobs, estimator=estimator), 0.0)
        .sum(dim=1)
        .mean()
        for estimator in ("k1", "k3")
    )
    values, returns = experience.values[mask], experience.returns[mask]
    spread = returns.var(correction=0)
    explained = 1 - (returns - values).var(correction=0) / spread if spread > 0 else spread.new_zeros(())
    metrics = {
        "score": experience.scores.mean(),
        "score_deviation": experience.scores.std(correction=0),
        "reward": experience.scores.mean() - kl_coefficient * kl,
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
    gap = sampling_gap(experience)
    return numbers if gap is None else numbers | {"sampling_gap": gap}


def alarms(history: Sequence[dict[str, float]]) -> list[str]:
    """The known pathologies that the last ``WINDOW`` steps show, in words, each beginning with its name."""
    if len(history) < WINDOW:
        return []
    first, recent = history[0], history[-WINDOW:]

    def all_recent(name: str, low: float = float("-inf"), high: float = float("inf")) -> bool:
        return all(low < step[name] < high for step in recent)

    last = recent[-1]
    found = []
    if all_recent("kl", low=KL_RUNAWAY):
        found.append(f"kl_runaway: {last['kl']:.1f} nats per answer; raise kl_coefficient or lower learning_rate")
    if all_recent("kl", high=NEGATIVE_KL):
        found.append(f"negative_kl: {last['kl']:.2f} nats per answer; sampling differs from the policy in training")
    if all_recent("entropy", high=ENTROPY_COLLAPSE * first["entropy"]):
        found.append(f"entropy_collapse: {last['entropy']:.3f} nats per token, {first['entropy']:.3f} at the start")
    if all_recent("length", low=LENGTH_BLOW_UP * first["length"]):
        found.append(f"length_blow_up: {last['length']:.0f} tokens, {first['length']:.0f} at the start")
    if all_recent("eos_rate", high=1e-9):
        found.append("no_eos: no answer ended by itself; raise max_new_tokens or missing_eos_penalty")
    return found


def overoptimisation(scores: Sequence[float], held_out: Sequence[float]) -> str | None:
    """The alarm for a score that rises while the held-out win rate falls: halves of the run, compared by their means.

    The two are of the same steps (or evaluations), oldest first; fewer than four say nothing.
    """
    if len(scores) != len(held_out):
        raise ValueError(f"{len(scores)} scores and {len(held_out)} win rates are not of the same steps")
    if len(scores) < 4:
        return None
    half = len(scores) // 2
    (score_before, score_after), (rate_before, rate_after) = (
        (sum(series[:half]) / half, sum(series[-half:]) / half) for series in (scores, held_out)
    )
    if score_after > score_before and rate_after < rate_before:
        return (
            f"overoptimisation: the score rose from {score_before:.3f} to {score_after:.3f} "
            f"while the held-out win rate fell from {rate_before:.3f} to {rate_after:.3f}"
        )
    return None
