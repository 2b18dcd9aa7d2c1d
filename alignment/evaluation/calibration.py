"""Whether a reward model's scores mean what they say: accuracy on pairs, and calibration of its probabilities."""

from collections.abc import Callable, Hashable, Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_expit, ndtri
from scipy.stats import t as student

from alignment.evaluation.bootstrap import Measure
from alignment.evaluation.win_rate import Rate, win_rate

Floats = NDArray[np.float64]
DRAWS = 2000  # of the noise behind an interval
BISECTIONS = 16  # to four decimals
COLDEST, HOTTEST = 0.05, 100.0  # temperatures that are looked at
TAIL = 0.975


class ReliabilityBin(TypedDict):
    """Predictions in (low, high]: what they said (``confidence``) and what happened (``accuracy``), as means."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


def pair_accuracy(
    chosen_scores: Sequence[float],
    rejected_scores: Sequence[float],
    *,
    confidence: float = 0.95,
    clusters: Sequence[Hashable] | None = None,
) -> Rate:
    """The share of pairs whose chosen answer scores higher; equal scores count half.

    Scores in any unit, one pair at each position; ``clusters`` are the pairs' prompts, whose pairs share answers and
    are not independent. The interval is the one of
    :func:`~alignment.evaluation.win_rate.win_rate`, Wilson's where no scores tie. Raises ValueError for no pairs,
    unequal numbers or scores not finite.
    """
    margins = _margins(chosen_scores, rejected_scores)
    return win_rate(((np.sign(margins) + 1) / 2).tolist(), confidence=confidence, clusters=clusters)


def pair_predictions(chosen_scores: Sequence[float], rejected_scores: Sequence[float]) -> tuple[Floats, Floats]:
    """The Bradley–Terry probability given to the answer that scores higher, and whether it was the chosen one.

    Returns probabilities in [0.5, 1] and outcomes 1 / 0 (0.5 where scores tie), both of shape (N,), ready for
    :func:`expected_calibration_error`. Taking the probability of the chosen answer instead would make every outcome 1,
    and a perfectly calibrated model look wrong.
    """
    margins = _margins(chosen_scores, rejected_scores)
    return np.asarray(expit(np.abs(margins))), (np.sign(margins) + 1) / 2


def reliability(probabilities: Sequence[float], outcomes: Sequence[float], bins: int = 10) -> list[ReliabilityBin]:
    """The reliability table over ``bins`` bins of equal width on [0, 1]; bins that hold nothing are left out.

    ``probabilities`` in [0, 1], ``outcomes`` in [0, 1] (1 happened, 0 did not), both of shape (N,). Raises ValueError
    for anything else, no predictions, or fewer than one bin.
    """
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(outcomes, dtype=np.float64)
    if p.ndim != 1 or p.shape != y.shape or p.size == 0:
        raise ValueError(f"as many outcomes as probabilities are needed, at least one: {p.shape} and {y.shape}")
    if not (((p >= 0) & (p <= 1)).all() and ((y >= 0) & (y <= 1)).all()):
        raise ValueError("probabilities and outcomes must lie in [0, 1]")
    if bins < 1:
        raise ValueError("at least one bin is needed")
    edges = np.linspace(0, 1, bins + 1)
    index = _bin_of(p, bins)
    table = []
    for i in np.unique(index):
        held = index == i
        table.append(
            ReliabilityBin(
                low=float(edges[i]),
                high=float(edges[i + 1]),
                n=int(held.sum()),
                confidence=float(p[held].mean()),
                accuracy=float(y[held].mean()),
            )
        )
    return table


def expected_calibration_error(probabilities: Sequence[float], outcomes: Sequence[float], bins: int = 10) -> float:
    """ECE (Naeini et al. 2015; Guo et al. 2017, eq. 3): the mean gap of confidence and accuracy, weighted by bin size.

    Arguments and errors as in :func:`reliability`. It is biased upwards on few predictions, see
    :func:`calibration_error`.
    """
    table = reliability(probabilities, outcomes, bins)
    gaps = sum(row["n"] * abs(row["confidence"] - row["accuracy"]) for row in table)
    return gaps / sum(row["n"] for row in table)


def calibration_error(
    probabilities: Sequence[float],
    outcomes: Sequence[float],
    bins: int = 10,
    *,
    confidence: float = 0.95,
    seed: int = 0,
    clusters: Sequence[Hashable] | None = None,
) -> Measure:
    """ECE without its upward bias, and its interval: all errors under which the one that was found is no surprise.

    Noise in a bin counts as a gap, so a resample of the data has more of it than the data, and a bootstrap's interval
    lies too high: for a calibrated model it never reaches 0. Here the test is inverted instead. Gaps in the proportions
    that were found, but of any size, are given each bin's sampling noise; ``low`` and ``high`` are the ECEs whose noisy
    ones exceed what was found in 2.5 % and in 97.5 % of draws, ``value`` is the one that does in half of them (it is
    median-unbiased). A calibrated model's interval begins at 0.

    Arguments and errors as in :func:`reliability`. ``clusters`` names for each outcome what it hangs on, the prompt as
    a rule: the noise of its bins then scatters as the clusters do. None: outcomes are independent of each other.
    """
    table = reliability(probabilities, outcomes, bins)
    n = np.array([row["n"] for row in table], dtype=np.float64)
    gaps = np.array([row["confidence"] - row["accuracy"] for row in table])
    happened = (n * np.array([row["accuracy"] for row in table]) + 1) / (n + 2)  # Agresti and Coull: never certain
    noise = np.sqrt(happened * (1 - happened) / n)
    weights = n / n.sum()
    found = float(weights @ np.abs(gaps))
    shape = gaps if found > 0 else noise  # with its signs: what a cluster shares moves all of its bins one way
    shape = shape / (weights @ np.abs(shape))  # of an ECE of 1
    rng = np.random.default_rng(seed)
    if clusters is None:
        draws = rng.standard_normal((DRAWS, len(table))) * noise
    else:
        together = _by_cluster(probabilities, outcomes, bins, clusters)
        spread = np.sqrt((together**2).sum(axis=0))
        together *= np.maximum(1.0, noise / np.where(spread > 0, spread, np.inf))  # never less than one by one
        draws = rng.standard_normal((DRAWS, len(together))) @ together
        draws += rng.standard_normal((DRAWS, len(table))) * np.where(spread > 0, 0.0, noise)
    # How many predictions fall in which bin is chance as well: another file would weigh the gaps in another way.
    weighing = rng.standard_normal(DRAWS) * np.sqrt(max(0.0, float(weights @ gaps**2) - found**2) / n.sum())

    def above(error: float) -> float:
        """How often the noisy ECE exceeds what was found, where the true one is ``error``."""
        return float((np.abs(error * shape + draws) @ weights + weighing > found).mean())

    tail = (1 - confidence) / 2
    low, value, high = (_where(above, share) for share in (tail, 0.5, 1 - tail))
    return Measure(value=value, low=low, high=high, n=int(n.sum()))


def _by_cluster(
    probabilities: Sequence[float], outcomes: Sequence[float], bins: int, clusters: Sequence[Hashable]
) -> Floats:
    """What each cluster adds to the noise of each bin's gap, (clusters, bins that hold something).

    By how much the gap would differ without the cluster, as a jackknife says it: what is left of a cluster after the
    mean it was part of is too small. And as much more as Student's quantile for so many clusters lies above the normal
    one.
    """
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(outcomes, dtype=np.float64)
    if len(clusters) != p.size:
        raise ValueError(f"{p.size} predictions need as many clusters, not {len(clusters)}")
    _names, place = np.unique(_bin_of(p, bins), return_inverse=True)
    order = {cluster: i for i, cluster in enumerate(dict.fromkeys(clusters))}
    size = np.bincount(place)
    gaps = np.bincount(place, p - y) / size
    table = np.zeros((len(order), len(size)))
    rows = np.array([order[cluster] for cluster in clusters], dtype=np.intp)
    own = np.zeros_like(table)
    np.add.at(table, (rows, place), p - y - gaps[place])
    np.add.at(own, (rows, place), 1.0)
    rest = size - own
    table = np.where(rest > 0, table / np.maximum(rest, 1.0), 0.0)
    table = table[np.lexsort(table.T)]  # the order of the file decides nothing
    return np.asarray(table * student.ppf(TAIL, max(len(table) - 1, 1)) / ndtri(TAIL), dtype=np.float64)


def _bin_of(p: Floats, bins: int) -> NDArray[np.intp]:
    edges = np.linspace(0, 1, bins + 1)
    return np.clip(np.searchsorted(edges, p, side="left") - 1, 0, bins - 1)


def _where(rising: Callable[[float], float], share: float) -> float:
    """The error in [0, 1] at which ``rising`` reaches ``share``; 0 where it lies above it everywhere."""
    low, high = 0.0, 1.0
    if rising(low) >= share:
        return low
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if rising(middle) >= share else (middle, high)
    return high


def _margins(chosen: Sequence[float], rejected: Sequence[float]) -> Floats:
    left, right = np.asarray(chosen, dtype=np.float64), np.asarray(rejected, dtype=np.float64)
    if left.ndim != 1 or left.shape != right.shape or left.size == 0:
        raise ValueError(f"as many chosen as rejected scores are needed, at least one: {left.shape} and {right.shape}")
    if not (np.isfinite(left).all() and np.isfinite(right).all()):
        raise ValueError("scores must be finite")
    return left - right


def fit_temperature(log_odds: Sequence[float], targets: Sequence[float]) -> float:
    """The temperature under which log-odds predict the targets best (Guo et al. 2017, section 4.2); 1 without any.

    ``targets`` in [0, 1] are shares of votes for the left answer. Log-odds that point the wrong way end at the hottest.
    """
    if not log_odds:
        return 1.0
    odds, share = np.asarray(log_odds, dtype=np.float64), np.asarray(targets, dtype=np.float64)

    def loss(log_temperature: float) -> float:
        scaled = odds / np.exp(log_temperature)
        return float(-(share * log_expit(scaled) + (1 - share) * log_expit(-scaled)).mean())

    bounds = (float(np.log(COLDEST)), float(np.log(HOTTEST)))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))
