"""The alarms for the ways in which training on one's own answers is known to go wrong."""

from collections.abc import Sequence

WINDOW = 3  # steps that must agree before an alarm
KL_RUNAWAY = 50.0  # nats per answer: the policy gives its own answers e^50 times the reference's probability
NEGATIVE_KL = -0.5  # nats per answer, mean of k1: impossible on average, unless tokens come from elsewhere
ENTROPY_COLLAPSE = 0.1  # share of the first step's entropy
LENGTH_BLOW_UP = 2.0  # times the first step's length


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
