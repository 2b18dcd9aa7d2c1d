"""What holds before the first update, by definition: a run in which it does not is wrong from its first step.

There the policy is its reference, so DPO's rewards are 0, and its logistic loss is ln 2. Rounding alone breaks none of
it where both sides pass through the same batch; dropout, another padding or another number format on one side does.
"""

import math
from collections.abc import Mapping

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
