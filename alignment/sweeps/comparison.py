"""How the variants of a sweep compare on the same held-out prompts: every two, with intervals that hold together.

With k variants each of the k (k - 1) / 2 intervals has the error 5 % over their number (Bonferroni). So they hold all
at once, and also for the best of them, which the same prompts have chosen.
"""

from collections.abc import Mapping
from itertools import combinations

from alignment.evaluation.bootstrap import Difference, Floats, Measure, averaged, estimate, lead
from alignment.prompting.comparison import ERROR
from alignment.records import Record
from alignment.sweeps.crossed import crossed_lead, crossed_mean


class VariantDifference(Record):
    """The mean of ``left`` less that of ``right``; the interval holds for all comparisons of the sweep together."""

    left: str
    right: str
    difference: Difference


class HeldOutComparison(Record):
    """``means`` by variant, whose intervals hold together, and ``differences`` of every two of them, likewise.

    ``best`` has the highest mean (of equals the first); ``alike`` are those not told apart from it, ``worse`` those
    that it is better than. ``seeds``: intervals are over prompts and seeds; with one seed over prompts alone.
    """

    seeds: int
    prompts: int
    means: dict[str, Measure]
    differences: tuple[VariantDifference, ...]
    best: str
    alike: tuple[str, ...]
    worse: tuple[str, ...]

    def behind(self, variant: str) -> Difference | None:
        """The lead of the best over a variant; None for the best itself."""
        for one in self.differences:
            if (one.left, one.right) == (self.best, variant):
                return one.difference
            if (one.right, one.left) == (self.best, variant):
                found = one.difference
                return Difference(value=-found.value, low=-found.high, high=-found.low, n=found.n)
        return None


def compare(values: Mapping[str, Floats]) -> HeldOutComparison:
    """Compares variants by their values, (prompts, seeds), higher being better. Raises ValueError without any."""
    pairs = list(combinations(values, 2))
    confidence = 1 - ERROR / max(1, len(pairs))
    means = {name: _mean(name, values) for name in values}
    best = max(means, key=lambda name: means[name].value)
    prompts, seeds = values[best].shape
    found = HeldOutComparison(
        seeds=seeds, prompts=prompts, means=means, best=best, alike=(), worse=(),
        differences=tuple(
            VariantDifference(left=left, right=right, difference=_difference(left, right, values, confidence))
            for left, right in pairs
        ),
    )  # fmt: skip
    ahead = {name: lead for name in values if (lead := found.behind(name)) is not None}
    worse = tuple(name for name, lead in ahead.items() if lead.n > 1 and lead.low > 0)
    return found.model_copy(update={"worse": worse, "alike": tuple(name for name in ahead if name not in worse)})


def _mean(name: str, values: Mapping[str, Floats]) -> Measure:
    own, confidence = values[name], 1 - ERROR / len(values)
    if min(own.shape) < 2:
        return estimate(averaged(own.mean(axis=1).tolist()), confidence=confidence)
    return crossed_mean(own, list(values.values()), confidence=confidence)


def _difference(left: str, right: str, values: Mapping[str, Floats], confidence: float) -> Difference:
    mine, theirs = values[left], values[right]
    if min(mine.shape) < 2:
        sides = averaged(mine.mean(axis=1).tolist()), averaged(theirs.mean(axis=1).tolist())
        return lead(*sides, confidence=confidence)
    return crossed_lead(mine, theirs, list(values.values()), confidence=confidence)
