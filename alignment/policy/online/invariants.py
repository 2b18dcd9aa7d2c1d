"""What must be true before the first update of any run. If it is not, nothing that follows means anything.

The bounds are on means over tokens. Policy, reference and training pass run the same code on the same batches, so on a
processor they agree to the last bit in any dtype: the first KL is 0 and the first ratio is 1. The engine's kernels are
others: in bfloat16, whose logits are rounded to a sixteenth at 16, SmolLM2's own log-probabilities differ by 0.04 nats
per token between sampling and training. A wrong position id, mask or temperature moves the mean by tenths.
"""

from typing import Protocol

import torch

from alignment.errors import StageError
from alignment.policy.losses import masked_mean
from alignment.policy.online.off_policy import OTHER_ENGINE, gap_metrics

BOUND = 1e-3  # nats per token: the same code on the same batch
OTHER_KERNEL = 1e-2  # nats per token: a GPU may take another attention in half precision for a pass with gradients
SAMPLING_BOUNDS = {torch.float32: 1e-3, torch.bfloat16: 1e-1, torch.float16: 2e-2}  # nats per token, the engine's


class Compared(Protocol):
    """What the checks look at: (N, R) each, under the policy, its reference, and as the answers were drawn."""

    @property
    def mask(self) -> torch.Tensor: ...
    @property
    def logprobs(self) -> torch.Tensor: ...
    @property
    def ref_logprobs(self) -> torch.Tensor | None: ...
    @property
    def sampling_logprobs(self) -> torch.Tensor | None: ...


def check_experience(experience: Compared, dtype: torch.dtype, *, same_engine: bool) -> None:
    """At step 0: the reference is the policy, and the engine samples from the policy.

    ``same_engine`` is False where importance weights make up for an engine that is known to differ, within
    ``OTHER_ENGINE``: further away it does not differ, it samples from something else.
    Raises StageError with what is broken.
    """
    if experience.ref_logprobs is not None:
        apart = float(masked_mean((experience.logprobs - experience.ref_logprobs).abs(), experience.mask))
        if not apart <= BOUND:
            raise StageError(
                f"step 0: policy and reference should be the same model, but differ by {apart:.4g} nats per token "
                f"(bound {BOUND:g}); the reference is not what the policy started from"
            )
    gaps = gap_metrics(experience.logprobs, experience.sampling_logprobs, experience.mask)
    gap, bound = gaps.get("sampling_gap"), SAMPLING_BOUNDS[dtype] if same_engine else OTHER_ENGINE
    if gap is not None and not gap <= bound:
        raise StageError(
            f"step 0: log-probabilities of sampling and training differ by {gap:.4g} nats per token (bound {bound:g}); "
            "the engine does not sample from the model that is trained"
        )


def check_first_update(first: dict[str, float], dtype: torch.dtype, device: torch.device) -> None:
    """In the first minibatch, before any change: every ratio is 1, so the approximate KL is 0.

    Raises StageError with what is broken.
    """
    bound = BOUND if device.type == "cpu" or dtype == torch.float32 else OTHER_KERNEL
    if not abs(first["ratio_mean"] - 1) <= bound or not first["approximate_kl"] <= bound:
        raise StageError(
            f"step 0: the first ratio should be 1 and is {first['ratio_mean']:.4g} on average, with an approximate KL "
            f"of {first['approximate_kl']:.4g} (bound {bound:g}); dropout is on, or batches disturb one another"
        )
