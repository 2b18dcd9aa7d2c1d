"""How sure a metric is, and whether two versions differ in it, by resampling the prompts they answered.

A metric is a function of sums over prompts: a mean is one sum over another, corpus BLEU is a function of ten, the
perplexity of two. So a resample is a vector of counts, all resamples are one matrix product, and the same code gives
every metric its interval. Two versions are resampled together, prompt by prompt (Koehn 2004): what a prompt's
difficulty adds to both is no part of their difference.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from math import exp, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from scipy.stats import t as student

from alignment.evaluation.win_rate import win_rate
from alignment.records import Record

Floats = NDArray[np.float64]
Value = Callable[[Floats], Floats]

RESAMPLES = 2000
HELD = 4_000_000  # counts that are held at once
NOTHING = 1e-12  # a spread that is rounding, relative to the value


class Measure(Record):
    """A metric over ``n`` prompts with its 95 % interval; of a single prompt the interval is the value itself."""

    value: float
    low: float
    high: float
    n: int


class Difference(Record):
    """One version's metric less another's over the same ``n`` prompts, with its confidence interval."""

    value: float
    low: float
    high: float
    n: int

    @property
    def significant(self) -> bool:
        """Whether the interval excludes zero: only then may the difference be called one."""
        return self.n > 1 and (self.low > 0 or self.high < 0)


def ratio(sums: Floats) -> Floats:
    """The first sum over the second, (..., 2) → (...); NaN where the second is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(sums[..., 0] / sums[..., 1], dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Sums:
    """A metric of one version: what each prompt adds to the sums that it is a function of.

    ``rows`` (N, K), zero where the metric does not apply to the prompt: ``applies`` (N,) says where it does. ``value``
    maps sums (..., K) to the metric (...). ``binary``: a share of prompts, each 0 or 1 in the first column.
    """

    rows: Floats
    applies: NDArray[np.bool_]
    value: Value = ratio
    binary: bool = False

    def at(self, places: Sequence[int]) -> "Sums":
        """The same metric on some of the prompts."""
        index = np.asarray(places, dtype=np.intp)
        return Sums(self.rows[index], self.applies[index], self.value, self.binary)


def summed(rows: Floats, clusters: Sequence[Hashable] | None) -> Floats:
    """Rows (N, K) added up by what they hang on, (clusters, K): what is not independent is resampled as one.

    None: every row by itself. Raises ValueError for other than one cluster for each row.
    """
    if clusters is None:
        return rows
    if len(clusters) != len(rows):
        raise ValueError(f"{len(rows)} rows need as many clusters, not {len(clusters)}")
    place = {cluster: i for i, cluster in enumerate(dict.fromkeys(clusters))}
    table = np.zeros((len(place), rows.shape[1]))
    np.add.at(table, [place[cluster] for cluster in clusters], rows)
    return table


def averaged(values: Sequence[float | None], *, binary: bool = False) -> Sums:
    """A metric that is the mean of one value for each prompt, None where it does not apply."""
    applies = np.array([value is not None for value in values], dtype=np.bool_)
    numbers = [0.0 if value is None else float(value) for value in values]
    return Sums(np.stack([np.array(numbers), applies.astype(np.float64)], axis=1), applies, ratio, binary)


def estimate(sums: Sums, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0) -> Measure:
    """The metric and its interval: Wilson's where it is a share of prompts, else :func:`bootstrap`'s.

    The score interval keeps an honest width where all are right, or all wrong; a bootstrap would claim certainty.
    Raises ValueError where the metric applies to no prompt.
    """
    rows = sums.rows[sums.applies]
    if not len(rows):
        raise ValueError("the metric applies to no prompt")
    if sums.binary:
        rate = win_rate(rows[:, 0].tolist(), confidence=confidence)
        return Measure(value=rate.value, low=rate.low, high=rate.high, n=rate.n)
    value, low, high = bootstrap(rows, sums.value, confidence=confidence, resamples=resamples, seed=seed)
    return Measure(value=value, low=low, high=high, n=len(rows))


def lead(
    mine: Sums, theirs: Sums, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Difference:
    """The metric of ``mine`` less that of ``theirs``, over the same prompts, with its interval.

    Tango's for paired shares (see :func:`~alignment.evaluation.win_rate.win_rate`) where both are shares of the same
    prompts, else the paired bootstrap's. Raises ValueError for different metrics or prompts, or none.
    """
    if mine.rows.shape != theirs.rows.shape:
        raise ValueError(f"two versions on the same prompts are needed, not {mine.rows.shape} and {theirs.rows.shape}")
    asked = mine.applies | theirs.applies
    if not (mine.applies.any() and theirs.applies.any()):
        raise ValueError("the metric applies to no prompt")
    if mine.binary and theirs.binary and (mine.applies == theirs.applies).all():
        won = (1 + mine.rows[asked, 0] - theirs.rows[asked, 0]) / 2
        rate = win_rate(won.tolist(), confidence=confidence)
        return Difference(value=2 * rate.value - 1, low=2 * rate.low - 1, high=2 * rate.high - 1, n=rate.n)
    columns = mine.rows.shape[1]
    both = np.concatenate([mine.rows, theirs.rows], axis=1)[asked]

    def statistic(sums: Floats) -> Floats:
        return mine.value(sums[..., :columns]) - theirs.value(sums[..., columns:])

    value, low, high = bootstrap(both, statistic, confidence=confidence, resamples=resamples, seed=seed)
    return Difference(value=value, low=low, high=high, n=len(both))


def mean(values: Sequence[float]) -> Measure:
    """The mean of one score for each prompt. Where all are 0 or 1 it is a share, and its interval is Wilson's."""
    return estimate(averaged(values, binary=set(values) <= {0.0, 1.0}))


def difference(mine: Sequence[float], theirs: Sequence[float]) -> Difference:
    """The mean of ``mine`` less that of ``theirs``, prompt by prompt; of shares where all values are 0 or 1."""
    binary = set(mine) | set(theirs) <= {0.0, 1.0}
    return lead(averaged(mine, binary=binary), averaged(theirs, binary=binary))


def positive_mean(values: Sequence[float], *, confidence: float = 0.95) -> Measure:
    """The mean of positive, right-skewed values, one for each prompt, and its Student interval on the log scale.

    With the delta method's error of the logarithm, s / (mean √n). A bootstrap of eight or sixteen skewed values ends
    too low: what it has not drawn it cannot resample. Values may be 0, not below: ValueError; so it is without values.
    """
    given = np.asarray(values, dtype=np.float64)
    if not given.size or not (given >= 0).all():
        raise ValueError("a mean of positive values needs at least one, and none below 0")
    n, value = given.size, float(given.mean())
    if n == 1 or value == 0:
        return Measure(value=value, low=value, high=value, n=n)
    reach = float(student.ppf((1 + confidence) / 2, n - 1)) * float(given.std(ddof=1)) / (sqrt(n) * value)
    return Measure(value=value, low=value * exp(-reach), high=value * exp(reach), n=n)


def paired_bootstrap(
    a: Sequence[float], b: Sequence[float], *, resamples: int = RESAMPLES, seed: int = 0, confidence: float = 0.95
) -> Difference:
    """The difference of two means, ``a[i]`` and ``b[i]`` being one prompt's, whatever the values are.

    Raises ValueError for samples of unequal size, fewer than two prompts, or values not finite.
    """
    left, right = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if left.shape != right.shape or left.ndim != 1 or left.size < 2:
        raise ValueError(f"two samples of the same prompts are needed, not {left.shape} and {right.shape}")
    if not (np.isfinite(left).all() and np.isfinite(right).all()):
        raise ValueError("values must be finite")
    sides = averaged(left.tolist()), averaged(right.tolist())
    return lead(*sides, confidence=confidence, resamples=resamples, seed=seed)


def bootstrap(
    rows: Floats, statistic: Value, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float, float]:
    """A statistic of the column sums of ``rows`` (N, K), and the ends of its interval: BCa, widened for few prompts.

    BCa (Efron 1987) corrects the percentiles for bias and skew. They are also moved outwards as Student's t asks
    (Hesterberg 2015, section 4.3): a resample's spread is too small by sqrt((n - 1) / n), and the normal's tails are
    too thin, which at twenty prompts would leave out one case in twelve where one in twenty was promised. Where every
    prompt says the same there is no spread, and the interval is the value.

    Resamples in which the statistic is not defined are left out. The order of the rows does not matter. Raises
    ValueError without rows.
    """
    n = len(rows)
    if n == 0:
        raise ValueError("at least one prompt is needed")
    rows = rows[np.lexsort(rows.T)]
    sums = rows.sum(axis=0)
    value = float(statistic(sums))
    drawn = statistic(_resampled(rows, resamples, seed))
    drawn = drawn[np.isfinite(drawn)]
    if n == 1 or not drawn.size or np.ptp(drawn) <= NOTHING * max(1.0, abs(value)):
        return value, value, value
    below = ((drawn < value).sum() + (drawn == value).sum() / 2) / drawn.size
    bias = ndtri(np.clip(below, 1 / (drawn.size + 1), drawn.size / (drawn.size + 1)))
    with np.errstate(divide="ignore", invalid="ignore"):
        left_out = statistic(sums - rows)
    deviations = left_out[np.isfinite(left_out)].mean() - left_out[np.isfinite(left_out)]
    squares = (deviations**2).sum()
    skew = (deviations**3).sum() / (6 * squares**1.5) if squares > 0 else 0.0
    tail = sqrt(n / (n - 1)) * student.ppf((1 + confidence) / 2, n - 1)
    ends = bias + np.array([-tail, tail])
    levels = ndtr(bias + ends / np.maximum(1 - skew * ends, 0.1))
    low, high = np.quantile(drawn, levels).tolist()
    return value, low, high


def _resampled(rows: Floats, resamples: int, seed: int) -> Floats:
    """The column sums of ``resamples`` draws of all rows with replacement: (resamples, K)."""
    rng = np.random.default_rng(seed)
    n = len(rows)
    step = max(1, HELD // n)
    sums = np.empty((resamples, rows.shape[1]))
    for begin in range(0, resamples, step):
        size = min(step, resamples - begin)
        picks = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        counts = np.bincount(picks.ravel(), minlength=size * n).reshape(size, n)
        sums[begin : begin + size] = counts.astype(np.float64) @ rows
    return sums
