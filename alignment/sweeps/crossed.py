"""Differences between variants that were trained with several seeds and asked the same prompts.

Prompts and seeds are crossed: every seed's model answers every prompt. Both scatter. A setting that was lucky with its
seeds is so on all prompts at once, and no number of prompts shows it; so the variance of a difference is that of its
means over prompts and that of its means over seeds, added. What belongs to one prompt and one seed together is in both
and counts twice, which errs on the side of caution (Owen 2007, "The pigeonhole bootstrap", Annals of Applied Statistics
1, 386-411). Student's quantile is the mean of those with the degrees of freedom of prompts and of seeds, weighted by
the variances (Cochran and Cox 1957, Experimental Designs, section 4.14): with degrees of freedom of the sum
(Satterthwaite 1946) a few seeds that happen to agree would count as if many prompts had said so.
"""

from collections.abc import Sequence
from math import sqrt

import numpy as np
from scipy.stats import t as student

from alignment.evaluation.bootstrap import Difference, Floats, Measure

NO_DIFFERENCE = np.zeros(2)  # of the prompts that are added before the scatter of few is believed


def crossed_lead(mine: Floats, theirs: Floats, everyone: Sequence[Floats], *, confidence: float) -> Difference:
    """The mean of ``mine`` less that of ``theirs``, both (prompts, seeds), with its interval over prompts and seeds.

    ``everyone`` are the values of all variants: two seeds of a pair say next to nothing about how much seeds scatter,
    and those of all variants say more. Their scatter is pooled as in a table of variants by seeds without repetition,
    with (variants - 1)(seeds - 1) degrees of freedom; where the pair's own is larger, it counts.

    Two prompts without a difference are added before the scatter over prompts is taken, so that a few prompts that all
    say the same are no certainty (as Agresti and Coull 1998 add two wins and two losses). Raises ValueError for unequal
    shapes, fewer than two prompts or fewer than two seeds.
    """
    if mine.shape != theirs.shape or mine.ndim != 2 or min(mine.shape) < 2:
        raise ValueError(f"two prompts and two seeds are needed, and the same, not {mine.shape} and {theirs.shape}")
    apart = mine - theirs
    seeds = apart.shape[1]
    over_seeds = max(2 * _pooled(everyone) / seeds, float(apart.mean(axis=0).var(ddof=1)) / seeds)
    return _interval(apart, NO_DIFFERENCE, over_seeds, (len(everyone) - 1) * (seeds - 1), confidence)


def crossed_mean(mine: Floats, everyone: Sequence[Floats], *, confidence: float) -> Measure:
    """The mean of one variant's values, (prompts, seeds), with its interval over prompts and seeds.

    How much seeds scatter is pooled over all variants, around each one's own mean. The lowest and the highest value of
    all are added as two prompts before the scatter over prompts is taken.
    """
    seeds = mine.shape[1]
    scatter = float(np.mean([values.mean(axis=0).var(ddof=1) for values in everyone]))
    own = float(mine.mean(axis=0).var(ddof=1))
    ends = np.array([min(values.min() for values in everyone), max(values.max() for values in everyone)])
    found = _interval(mine, ends, max(scatter, own) / seeds, len(everyone) * (seeds - 1), confidence)
    return Measure(value=found.value, low=found.low, high=found.high, n=found.n)


def _pooled(everyone: Sequence[Floats]) -> float:
    """The variance of a variant's mean with one seed, less what the seed does to all variants alike."""
    table = np.stack([values.mean(axis=0) for values in everyone])
    rest = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0, keepdims=True) + table.mean()
    return float((rest**2).sum() / ((table.shape[0] - 1) * (table.shape[1] - 1)))


def _interval(values: Floats, added: Floats, over_seeds: float, seed_degrees: int, confidence: float) -> Difference:
    """The mean of ``values`` (prompts, seeds); ``over_seeds`` is its variance for the choice of seeds. Prompts that are
    ``added`` count in the variance for the choice of prompts alone."""
    prompts = len(values)
    rows = values.mean(axis=1)
    center = float(rows.mean())
    over_prompts = float(np.append(rows, added).var(ddof=1)) / prompts
    variance = over_prompts + over_seeds
    if variance <= 0:
        return Difference(value=center, low=center, high=center, n=prompts)
    tail = (1 - confidence) / 2
    of_prompts, of_seeds = (float(student.isf(tail, degrees)) for degrees in (prompts - 1, seed_degrees))
    reach = (over_prompts * of_prompts + over_seeds * of_seeds) / sqrt(variance)
    return Difference(value=center, low=center - reach, high=center + reach, n=prompts)
