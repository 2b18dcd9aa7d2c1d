"""What holds before the first update, by definition: a run in which it does not is wrong from its first step.

There the policy is its reference, so the rewards of DPO and KTO are 0, and each loss is what its formula gives for log-
ratios of 0 (ln 2 for the logistic ones). Rounding alone breaks none of it where both sides pass through the same batch;
dropout, another padding or another number format on one side does.
"""

import math
from collections.abc import Mapping

from alignment.errors import StageError

TOLERANCE = 1e-3  # nats, of a mean over the first step's answers or pairs


def first_dpo_loss(loss: str, beta: float, smoothing: float) -> float | None:
    """A DPO loss where policy and reference are one, as its formula gives it for log-ratios of 0.

    None for "sft", which knows no reference.
    """
    ln2 = math.log(2)
    if loss == "exo_pair":  # KL of a fair coin from (1 − ε, ε)
        return -ln2 - 0.5 * (math.log1p(-smoothing) + math.log(smoothing))
    return {
        "sft": None, "hinge": 1.0, "ipo": 1 / (2 * beta) ** 2, "nca_pair": 2 * ln2, "bco_pair": 2 * ln2,
        "sppo_hard": 0.5 / beta**2, "apo_zero": 1.0, "apo_down": 1.0, "discopop": (ln2 + 1) / 2,
    }.get(loss, ln2)  # fmt: skip


def check_first_dpo_step(
    metrics: Mapping[str, float], losses: Mapping[str, float], beta: float, smoothing: float
) -> None:
    """Raises StageError where the first step's metrics are not those of a policy that is its reference.

    Args:
        losses: the weight of each of its losses, by TRL's names.
        smoothing: the probability that a pair's label is wrong.
    """
    expected = {"rewards/chosen": 0.0, "rewards/rejected": 0.0, "rewards/margins": 0.0}
    terms = {name: first_dpo_loss(name, beta, smoothing) for name in losses}
    known = [losses[name] * value for name, value in terms.items() if value is not None]
    if len(known) == len(losses) and "aux_loss" not in metrics:
        expected["loss"] = sum(known)
    for name, value in expected.items():
        if name in metrics and not abs(metrics[name] - value) <= TOLERANCE * max(1.0, abs(value)):
            raise StageError(
                f"before the first update {name} is {metrics[name]:.5f} where it is {value:.5f} by definition: policy "
                "and reference differ by more than rounding; is there dropout or other noise in the model?"
            )


def check_first_kto_step(metrics: Mapping[str, float], weights: tuple[float, float]) -> None:
    """Raises StageError where the first step's metrics are not those of a policy that is its reference.

    There the KL is 0 and so is each reward: an answer's loss is its weight times σ(0).

    Args:
        weights: of desirable and of undesirable answers.
    """
    expected = dict.fromkeys(("kl", "rewards/chosen", "rewards/rejected"), (0.0, 0.0))
    if "aux_loss" not in metrics:
        expected["loss"] = (min(weights) / 2, max(weights) / 2)
    for name, (low, high) in expected.items():
        if name in metrics and not low - TOLERANCE <= metrics[name] <= high + TOLERANCE:
            wanted = f"{low:.5f}" if low == high else f"between {low:.5f} and {high:.5f}"
            raise StageError(
                f"before the first update {name} is {metrics[name]:.5f} where it is {wanted} by definition: policy and "
                "reference differ by more than rounding; is there dropout or other noise in the model?"
            )
