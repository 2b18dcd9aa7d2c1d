"""How far two traces may lie apart, and how far they do.

The bounds follow from how numbers are rounded, not from what was seen. Two ways to the same sum of ``n`` terms differ
by about √n of its unit roundoff (n at the very worst; Higham & Mary 2019, "A new approach to probabilistic rounding
error analysis"). AdamW divides a gradient by its own size, so a relative error of the gradient becomes the same one of
the update, and what each update brings adds up, at learning rates that are high on purpose.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tests.alignment.invariance.stages import Row
from tests.alignment.invariance.traces import Trace

ROUNDOFF = {"float32": 2.0**-24, "bfloat16": 2.0**-9}
TERMS = {
    "float32": 2**12,  # no sum here is longer, of a batch's tokens times what each of them adds
    "bfloat16": 2**5,  # operations between an input and the loss; their sums are taken in float32
}
UPDATES = 12  # at most
BOUND = {  # of a deviation, as a share of the trace's scale
    "float32": 4 * UPDATES * TERMS["float32"] ** 0.5 * ROUNDOFF["float32"],
    "bfloat16": 4 * TERMS["bfloat16"] ** 0.5 * ROUNDOFF["bfloat16"],
}
DRIFT = {dtype: bound / 4 for dtype, bound in BOUND.items()}  # of the mean: roundings have no side


@dataclass(frozen=True, slots=True)
class Deviation:
    """Of a curve: the largest, and the mean with its sign; both as shares of the reference's scale."""

    largest: float
    drift: float


def same_steps(trace: Trace, reference: Trace) -> int | None:
    """Steps up to the first one with other answers; None where all answers are the same, or none is drawn."""
    for step, (one, other) in enumerate(zip(trace.answers, reference.answers, strict=True)):
        if one != other:
            return step
    return None


def deviation(values: Sequence[float], reference: Sequence[float], scale: float) -> Deviation:
    """How far the one curve is from the other."""
    apart = [(value - expected) / scale for value, expected in zip(values, reference, strict=True)]
    return Deviation(max(map(abs, apart)), sum(apart) / len(apart))


def deviations(trace: Trace, reference: Trace, row: Row, until: int | None) -> dict[str, Deviation]:
    """By curve, over the first ``until`` steps (None: all of them)."""
    found = {}
    for name, expected in reference.curves.items():
        scale = max(*map(abs, expected), row.terms if name != row.norm else 0.0)
        assert scale > 0, f"{name} is 0 at every step: there is nothing to compare"
        found[name] = deviation(trace.curves[name][:until], expected[:until], scale)
    return found
