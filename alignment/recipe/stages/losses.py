"""The losses of GRPO by name, each with the clipping range that its own paper gives: they are of no common scale."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

GrpoLoss = Literal["grpo", "dr_grpo", "dapo", "bnpo", "gspo", "cispo", "sapo", "luspo", "vespo"]
ImportanceLevel = Literal["token", "sequence"]
WIDEST_SEQUENCE = 0.05  # the ratio of an answer is a geometric mean over its tokens: it moves by thousandths


@dataclass(frozen=True, slots=True)
class LossDefaults:
    """A loss's own settings.

    Attributes:
        clip_low, clip_high: its range, as far below and above 1; None where it does not clip there. CISPO's upper
            bound is that of the weight itself.
        level: what its probability ratio is of.
        two_sided: whether an upper bound where the advantage is negative (``delta``) means something for it.
    """

    clip_low: float | None = 0.2
    clip_high: float | None = 0.2
    level: ImportanceLevel = "token"
    two_sided: bool = True


LOSSES: Mapping[GrpoLoss, LossDefaults] = {
    "grpo": LossDefaults(),  # Shao et al. 2024, after Schulman et al. 2017
    "dr_grpo": LossDefaults(),  # Liu et al. 2025
    "bnpo": LossDefaults(),
    "dapo": LossDefaults(clip_high=0.28),  # Yu et al. 2025, section 4.1
    "gspo": LossDefaults(3e-4, 4e-4, "sequence"),  # Zheng et al. 2025, section 5.1
    "luspo": LossDefaults(3e-4, 4e-4, "sequence"),  # GSPO's, whose answers it weighs by their lengths
    "cispo": LossDefaults(None, 5.0, two_sided=False),  # Khatri et al. 2025 (ScaleRL), after MiniMax 2025
    "sapo": LossDefaults(None, None, two_sided=False),  # a soft gate in place of a clip
    "vespo": LossDefaults(None, None, two_sided=False),
}


def range_faults(
    loss: GrpoLoss, level: ImportanceLevel | None, low: float | None, high: float | None, delta: float | None
) -> list[str]:
    """What is wrong with a loss's ranges as a recipe gives them (None: not given), each with what to do."""
    own = LOSSES[loss]
    faults = []
    for name, value, taken in (("clip_low", low, own.clip_low), ("clip_high", high, own.clip_high)):
        if value is not None and taken is None:
            faults.append(f"{name}={value:g} means nothing for loss={loss}: leave it out")
    if delta is not None and not own.two_sided:
        faults.append(f"delta={delta:g} means nothing for loss={loss}: leave it out")
    if loss == "cispo" and high is not None and high <= 1:
        faults.append(
            f"clip_high={high:g}: CISPO bounds the weight itself, so every weight would be at most {high:g}: leave it "
            "out (5.0), or give a bound above 1"
        )
    if own.clip_high is not None and loss != "cispo" and (level or own.level) == "sequence":
        given = [("clip_low", low), ("clip_high", high)]
        missing = [name for name, value in given if value is None and own.level != "sequence"]
        wide = [f"{name}={value:g}" for name, value in given if value is not None and value > WIDEST_SEQUENCE]
        if missing or wide:
            what = f"{' and '.join(missing)} left at a token's range" if missing else " and ".join(wide)
            faults.append(
                f"importance_level=sequence with {what} clips nothing: an answer's ratio moves by thousandths; use "
                "loss: gspo, or give clip_low: 0.0003 and clip_high: 0.0004"
            )
    if delta is not None and own.two_sided:
        upper = 1 + (high if high is not None else own.clip_high or 0.0)
        if delta <= upper:
            faults.append(f"delta={delta:g} is not above 1 + clip_high={upper:g}, where the clip ends already")
    return faults
