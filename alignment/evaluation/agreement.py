"""How far raters agree, beyond what chance would give.

Two layouts are used. *Ratings* are rows of raters over columns of units (what was rated), ``(R, U)``, with ``None`` or
NaN where a rater did not rate a unit. *Counts* are rows of units over columns of categories, ``(U, C)``.

Every function returns an :class:`Estimate`: a float that also knows its interval where ``bootstrap`` resamples were
asked for. It is NaN where the statistic is undefined, which is where chance alone already gives full agreement (all
ratings are of one category) or where no unit was rated twice.
"""

from collections.abc import Callable, Hashable, Sequence
from itertools import combinations
from typing import Any, Literal

import krippendorff
import numpy as np
import numpy.typing as npt

from alignment.evaluation.bootstrap import Floats, Value, ratio
from alignment.evaluation.bootstrap import bootstrap as bootstrapped
from alignment.evaluation.estimate import Estimate as Estimate

Rating = Hashable | None
Ratings = Sequence[Sequence[Any]] | npt.NDArray[Any]
Level = Literal["nominal", "ordinal", "interval", "ratio"]


def percent_agreement(ratings: Ratings, *, bootstrap: int = 0, seed: int = 0) -> Estimate:
    """The share of agreeing pairs of raters, averaged over the units that at least two raters rated.

    ``ratings``: (R, U), any hashable categories.
    """
    codes = _codes(ratings)

    shares = [_agreeing_pairs(codes[:, unit]) for unit in range(codes.shape[1])]
    table = np.array([(share, 1.0) for share in shares if share is not None]).reshape(-1, 2)
    return _of_sums(table, ratio, bootstrap, seed)


def cohen_kappa(first: Sequence[Any], second: Sequence[Any], *, bootstrap: int = 0, seed: int = 0) -> Estimate:
    """Cohen's κ of two raters (Cohen 1960): (p_o - p_e) / (1 - p_e), with each rater's own category shares for p_e.

    ``first``, ``second``: (U,), any hashable categories; units that either did not rate are left out. Raises ValueError
    where they differ in length.
    """
    if len(first) != len(second):
        raise ValueError(f"the raters rated {len(first)} and {len(second)} units; rows must be of one length")
    codes = _codes([first, second])
    codes = codes[:, (codes >= 0).all(axis=0)]
    categories = int(codes.max(initial=-1)) + 1
    table = np.zeros((codes.shape[1], categories * categories))
    table[np.arange(codes.shape[1]), codes[0] * categories + codes[1]] = 1.0

    def kappa(sums: Floats) -> Floats:
        shares = sums.reshape(*sums.shape[:-1], categories, categories) / sums.sum(axis=-1)[..., None, None]
        observed = shares.trace(axis1=-2, axis2=-1)
        return _beyond_chance(observed, (shares.sum(axis=-1) * shares.sum(axis=-2)).sum(axis=-1))

    return _of_sums(table, kappa, bootstrap, seed)


def fleiss_kappa(counts: Sequence[Sequence[int]] | npt.NDArray[Any], *, bootstrap: int = 0, seed: int = 0) -> Estimate:
    """Fleiss' κ of any number of raters (Fleiss 1971), who need not be the same for every unit.

    ``counts``: (U, C), how many raters put the unit into the category; every row has the same sum n ≥ 2. Raises
    ValueError otherwise. Where the number of ratings differs between units, use :func:`krippendorff_alpha`.
    """
    table = np.asarray(counts, dtype=np.float64)
    if table.ndim != 2 or not table.size:
        raise ValueError("counts must be a table of units by categories")
    raters = table[0].sum()
    if raters < 2 or (table.sum(axis=1) != raters).any() or (table < 0).any():
        raise ValueError("every unit must have the same number of ratings, at least two")

    agreeing = ((table**2).sum(axis=1) - raters) / (raters * (raters - 1))

    def kappa(sums: Floats) -> Floats:
        shares = sums[..., 1:] / sums[..., 1:].sum(axis=-1)[..., None]
        observed = sums[..., 0] / (sums[..., 1:].sum(axis=-1) / raters)
        return _beyond_chance(observed, (shares**2).sum(axis=-1))

    return _of_sums(np.concatenate([agreeing[:, None], table], axis=1), kappa, bootstrap, seed)


def krippendorff_alpha(ratings: Ratings, *, level: Level = "nominal", bootstrap: int = 0, seed: int = 0) -> Estimate:
    """Krippendorff's α (Krippendorff 2011), for any number of raters and with missing ratings.

    ``ratings``: (R, U). At level "nominal" any hashable categories; at the others numbers, whose order ("ordinal"),
    differences ("interval") or proportions ("ratio") count.
    """
    if level == "nominal":
        codes = _codes(ratings)
        values = np.where(codes < 0, np.nan, codes.astype(np.float64))
    else:
        values = np.array([[np.nan if _missing(x) else float(x) for x in row] for row in ratings], dtype=np.float64)

    def statistic(units: npt.NDArray[np.intp]) -> float:
        chosen = values[:, units]
        chosen = chosen[:, (~np.isnan(chosen)).sum(axis=0) >= 2]  # a unit rated once can neither agree nor disagree
        if len(np.unique(chosen[~np.isnan(chosen)])) < 2:
            return float("nan")
        return float(krippendorff.alpha(reliability_data=chosen, level_of_measurement=level))

    return _estimate(statistic, values.shape[1] if values.ndim == 2 else 0, bootstrap, seed)


def _estimate(statistic: Callable[[npt.NDArray[np.intp]], float], units: int, bootstrap: int, seed: int) -> Estimate:
    """The statistic of all units, and its percentile interval over resampled units (undefined resamples left out)."""
    value = statistic(np.arange(units))
    if not bootstrap or not units:
        return Estimate(value)
    random = np.random.default_rng(seed)
    resampled = np.array([statistic(random.integers(units, size=units)) for _ in range(bootstrap)])
    resampled = resampled[~np.isnan(resampled)]
    if not len(resampled):
        return Estimate(value)
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Estimate(value, float(low), float(high))


def _of_sums(rows: Floats, statistic: Value, resamples: int, seed: int) -> Estimate:
    """A statistic of sums over units, with the interval of :func:`alignment.evaluation.bootstrap.bootstrap`."""
    if not len(rows):
        return Estimate(float("nan"))
    value = float(statistic(rows.sum(axis=0)))
    if not resamples or np.isnan(value):
        return Estimate(value)
    return Estimate(*bootstrapped(rows, statistic, resamples=resamples, seed=seed))


def _beyond_chance(observed: Floats, expected: Floats) -> Floats:
    certain = np.isclose(expected, 1.0)
    share = (observed - expected) / np.where(certain, 1.0, 1.0 - expected)
    return np.asarray(np.where(certain, np.nan, share), dtype=np.float64)


def _agreeing_pairs(unit: npt.NDArray[np.int64]) -> float | None:
    pairs = list(combinations(unit[unit >= 0].tolist(), 2))
    return sum(one == other for one, other in pairs) / len(pairs) if pairs else None


def _missing(rating: Any) -> bool:
    return rating is None or (isinstance(rating, float | np.floating) and bool(np.isnan(rating)))


def _codes(ratings: Ratings) -> npt.NDArray[np.int64]:
    """Categories as numbers from 0, -1 for a missing rating. Raises ValueError for rows of different lengths."""
    lengths = {len(row) for row in ratings}
    if len(lengths) > 1:
        raise ValueError("every rater needs one entry per unit (None where there is no rating)")
    codes: dict[Hashable, int] = {}
    rows = [[-1 if _missing(x) else codes.setdefault(x, len(codes)) for x in row] for row in ratings]
    return np.array(rows, dtype=np.int64).reshape(len(rows), next(iter(lengths), 0))
