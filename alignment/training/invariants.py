"""What holds before the first update, by definition: a run in which it does not is wrong from its first step.

There the policy is its reference, so DPO's rewards are 0, its logistic loss is ln 2, and the log-ratios of GRPO and
RLOO, to the reference and to the policy that sampled, are 0. Rounding alone breaks none of it where both sides pass
through the same batch; dropout, another padding or another number format on one side does.
"""

import math
from collections.abc import Mapping

import torch

from alignment.errors import StageError

TOLERANCE = 1e-3  # nats, of a mean over the first step's answers or pairs
LOGISTIC = ("sigmoid", "robust", "sigmoid_norm")  # DPO's losses that are ln 2 where policy and reference are one


def check_first_dpo_step(metrics: Mapping[str, float], loss_type: str) -> None:
    """Raises StageError where the first step's metrics are not those of a policy that is its reference."""
    expected = {"rewards/chosen": 0.0, "rewards/rejected": 0.0, "rewards/margins": 0.0}
    if loss_type in LOGISTIC and "aux_loss" not in metrics:
        expected["loss"] = math.log(2)
    for name, value in expected.items():
        if name in metrics and not abs(metrics[name] - value) <= TOLERANCE:
            raise StageError(
                f"before the first update {name} is {metrics[name]:.5f} where it is {value:.5f} by definition: policy "
                "and reference differ by more than rounding; is there dropout or other noise in the model?"
            )


def check_first_ratios(logprobs: torch.Tensor, others: torch.Tensor, mask: torch.Tensor, *, of: str) -> None:
    """Raises StageError where a policy's log-probabilities before its first update are not those of ``others``.

    Args:
        logprobs, others: (B, T) of the same tokens.
        mask: (B, T), True is keep.
        of: what the others are, for the message.
    """
    difference = ((logprobs - others) * mask).sum(-1).abs().mean().item()
    if not difference <= TOLERANCE:
        raise StageError(
            f"before the first update the policy's answers are {difference:.4f} nats away from {of}, which it is by "
            "definition: is there dropout or other noise in the model?"
        )
