"""How far raters agree, beyond what chance would give.

Two layouts are used. *Ratings* are rows of raters over columns of units (what was rated), ``(R, U)``, with ``None`` or
NaN where a rater did not rate a unit. *Counts* are rows of units over columns of categories, ``(U, C)``.

Every function returns an :class:`Estimate`: a float that also knows its interval where ``bootstrap`` resamples were
asked for. ``clusters`` names for each unit what it hangs on: pairs of one ranking, or of one prompt's answers, are not
independent of each other, and are resampled as one. The order of units, raters and categories does not matter.

A figure is NaN where the statistic is undefined, which is where chance alone already gives full agreement (all ratings
are of one category) or where no unit was rated twice.
"""

from collections.abc import Callable, Hashable, Sequence
from itertools import combinations
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from alignment.evaluation.bootstrap import Floats, Value, ratio, summed
from alignment.evaluation.bootstrap import bootstrap as bootstrapped
from alignment.evaluation.estimate import Estimate as Estimate
from alignment.evaluation.win_rate import win_rate

Rating = Hashable | None
Ratings = Sequence[Sequence[Any]] | npt.NDArray[Any]
Clusters = Sequence[Hashable] | None
Level = Literal["nominal", "ordinal", "interval", "ratio"]


def percent_agreement(ratings: Ratings, *, bootstrap: int = 0, seed: int = 0, clusters: Clusters = None) -> Estimate:
    """The share of agreeing pairs of raters, averaged over the units that at least two raters rated.

    ``ratings``: (R, U), any hashable categories.
    """
    codes = _codes(ratings)
    _check_clusters(clusters, codes.shape[1])
    shares = [_agreeing_pairs(codes[:, unit]) for unit in range(codes.shape[1])]
    table = np.array([(0.0, 0.0) if share is None else (share, 1.0) for share in shares]).reshape(-1, 2)
    return _of_sums(table, ratio, bootstrap, seed, clusters)


def cohen_kappa(
    first: Sequence[Any], second: Sequence[Any], *, bootstrap: int = 0, seed: int = 0, clusters: Clusters = None
) -> Estimate:
    """Cohen's κ of two raters (Cohen 1960): (p_o - p_e) / (1 - p_e), with each rater's own category shares for p_e.

    ``first``, ``second``: (U,), any hashable categories; units that either did not rate are left out. Raises ValueError
    where they differ in length.
    """
    if len(first) != len(second):
        raise ValueError(f"the raters rated {len(first)} and {len(second)} units; rows must be of one length")
    codes = _codes([first, second])
    _check_clusters(clusters, codes.shape[1])
    rated = (codes >= 0).all(axis=0)
    categories = int(codes.max(initial=-1)) + 1
    table = np.zeros((codes.shape[1], categories * categories))
    table[np.flatnonzero(rated), codes[0, rated] * categories + codes[1, rated]] = 1.0

    def kappa(sums: Floats) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = sums.reshape(*sums.shape[:-1], categories, categories) / sums.sum(axis=-1)[..., None, None]
        observed = shares.trace(axis1=-2, axis2=-1)
        return _beyond_chance(observed, (shares.sum(axis=-1) * shares.sum(axis=-2)).sum(axis=-1))

    def chance(sums: Floats) -> float:
        shares = sums.reshape(categories, categories) / sums.sum()
        return float(shares.sum(axis=0) @ shares.sum(axis=1))

    return _of_sums(table, kappa, bootstrap, seed, clusters, chance)


def fleiss_kappa(
    counts: Sequence[Sequence[int]] | npt.NDArray[Any],
    *,
    bootstrap: int = 0,
    seed: int = 0,
    clusters: Clusters = None,
) -> Estimate:
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
    _check_clusters(clusters, len(table))
    agreeing = ((table**2).sum(axis=1) - raters) / (raters * (raters - 1))

    def kappa(sums: Floats) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = sums[..., 1:] / sums[..., 1:].sum(axis=-1)[..., None]
            observed = sums[..., 0] / (sums[..., 1:].sum(axis=-1) / raters)
        return _beyond_chance(observed, (shares**2).sum(axis=-1))

    def chance(sums: Floats) -> float:
        return float(((sums[1:] / sums[1:].sum()) ** 2).sum())

    return _of_sums(np.concatenate([agreeing[:, None], table], axis=1), kappa, bootstrap, seed, clusters, chance)


def krippendorff_alpha(
    ratings: Ratings, *, level: Level = "nominal", bootstrap: int = 0, seed: int = 0, clusters: Clusters = None
) -> Estimate:
    """Krippendorff's α (Krippendorff 2011), for any number of raters and with missing ratings.

    ``ratings``: (R, U). At level "nominal" any hashable categories; at the others numbers, whose order ("ordinal"),
    differences ("interval") or proportions ("ratio") count.

    It is a function of the coincidence matrix, which is a sum over units: so its interval is resampled as the others'.
    """
    if level == "nominal":
        codes = _codes(ratings)
        categories = np.arange(int(codes.max(initial=-1)) + 1, dtype=np.float64)
    else:
        values = np.array([[np.nan if _missing(x) else float(x) for x in row] for row in ratings], dtype=np.float64)
        categories = np.unique(values[~np.isnan(values)])
        codes = np.where(np.isnan(values), -1, np.searchsorted(categories, values)).astype(np.int64)
        codes = codes.reshape(len(values), -1)
    _check_clusters(clusters, codes.shape[1])
    size = len(categories)

    def alpha(sums: Floats) -> Floats:
        pairs = sums.reshape(*sums.shape[:-1], size, size)
        totals = pairs.sum(axis=-1)
        apart = _distances(level, categories, totals)
        whole = totals.sum(axis=-1)
        by_chance = (totals[..., :, None] * totals[..., None, :] * apart).sum(axis=(-2, -1))
        with np.errstate(divide="ignore", invalid="ignore"):
            found = 1 - (whole - 1) * (pairs * apart).sum(axis=(-2, -1)) / by_chance
        return np.asarray(np.where(by_chance > 0, found, np.nan), dtype=np.float64)

    def chance(sums: Floats) -> float:
        totals = sums.reshape(size, size).sum(axis=1)
        return float((totals * (totals - 1)).sum() / (totals.sum() * (totals.sum() - 1))) if level == "nominal" else 0.0

    return _of_sums(_coincidences(codes, size), alpha, bootstrap, seed, clusters, chance)


def _coincidences(codes: npt.NDArray[np.int64], categories: int) -> Floats:
    """What each unit adds to the coincidence matrix, (U, C²): every pair of its m ratings counts 1 / (m - 1)."""
    counts = (codes[:, :, None] == np.arange(categories)).sum(axis=0).astype(np.float64)  # (U, C)
    pairs = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(categories)
    rated = counts.sum(axis=1)[:, None, None]
    return np.where(rated > 1, pairs / np.maximum(rated - 1, 1), 0.0).reshape(len(counts), categories**2)


def _distances(level: Level, categories: Floats, totals: Floats) -> Floats:
    """Krippendorff's squared differences between categories, (..., C, C); ordinal ones depend on the ``totals``."""
    one, other = categories[:, None], categories[None, :]
    if level == "nominal":
        return np.asarray(one != other, dtype=np.float64)
    if level == "interval":
        return np.asarray((one - other) ** 2, dtype=np.float64)
    if level == "ratio":
        return np.asarray(((one - other) / np.where(one + other == 0, 1.0, one + other)) ** 2, dtype=np.float64)
    ranks = np.cumsum(totals, axis=-1) - totals / 2
    return np.asarray((ranks[..., :, None] - ranks[..., None, :]) ** 2, dtype=np.float64)


def _of_sums(
    rows: Floats,
    statistic: Value,
    resamples: int,
    seed: int,
    clusters: Clusters,
    chance: Callable[[Floats], float] = lambda _sums: 0.0,
) -> Estimate:
    """A statistic of sums over units, with the interval of :func:`alignment.evaluation.bootstrap.bootstrap`.

    Units that nobody can agree on (rows of zeros) are left out. Of a single cluster there is no interval. Where all
    agree a resample would claim certainty: the lower end is then where Wilson's is for a share of all clusters, beyond
    ``chance``.
    """
    rated = np.asarray(rows.any(axis=1))
    table = summed(rows[rated], None if clusters is None else [c for c, r in zip(clusters, rated, strict=True) if r])
    if not len(table):
        return Estimate(float("nan"))
    sums = table.sum(axis=0)
    value = float(statistic(sums))
    if not resamples or np.isnan(value) or len(table) < 2:
        return Estimate(value)
    found = bootstrapped(table, statistic, resamples=resamples, seed=seed)
    if np.isclose(value, 1.0):
        share = win_rate([1.0] * len(table)).low
        return Estimate(value, 1 - (1 - share) / (1 - chance(sums)), value)
    return Estimate(*found)


def _check_clusters(clusters: Clusters, units: int) -> None:
    if clusters is not None and len(clusters) != units:
        raise ValueError(f"{units} units need as many clusters, not {len(clusters)}")


def _beyond_chance(observed: Floats, expected: Floats) -> Floats:
    certain = np.isclose(expected, 1.0) | np.isnan(expected)
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
