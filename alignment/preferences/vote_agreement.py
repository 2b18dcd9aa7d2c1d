"""How far the votes agree: overall, and for every criterion that raters scored.

Overall, what was rated are pairs of answers and the ratings are left, right, tie or both bad. For a criterion, what was
rated are answers and the ratings are scores; votes carry them as ``criteria["CRITERION:RESPONSE"]``.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import Field

from alignment.evaluation.agreement import Estimate, fleiss_kappa, krippendorff_alpha, percent_agreement
from alignment.preferences.consensus import current_votes, rating_table
from alignment.records import Comparison, Record, Vote


class Agreement(Record):
    """One statistic. ``value`` is None where it is undefined; ``units`` is how many were rated at least twice."""

    statistic: str
    of: str  # "verdict", or a criterion's name
    value: float | None
    low: float | None = None  # 95 % bootstrap interval over units
    high: float | None = None
    units: int = Field(ge=0)


def agreement_figures(
    comparisons: Sequence[Comparison], votes: Iterable[Vote], *, bootstrap: int = 0, seed: int = 0
) -> list[Agreement]:
    """Percent agreement, Krippendorff's α and Fleiss' κ of the verdicts, then α (ordinal) and κ of every criterion."""
    current = current_votes(votes)
    figures = _figures("verdict", rating_table(comparisons, current), "nominal", bootstrap, seed)
    for criterion, table in sorted(_score_tables(current).items()):
        figures += _figures(criterion, table, "ordinal", bootstrap, seed)
    return figures


def _figures(of: str, table: Mapping[str, Sequence[Any]], level: Any, bootstrap: int, seed: int) -> list[Agreement]:
    rows = [list(row) for row in table.values()]
    units = [Counter(one for one in unit if one is not None) for unit in zip(*rows, strict=True)]
    shared = [unit for unit in units if unit.total() >= 2]
    if not shared:
        names = ("percent_agreement", "krippendorff_alpha", "fleiss_kappa")
        return [Agreement(statistic=name, of=of, value=None, units=0) for name in names]
    options = {"bootstrap": bootstrap, "seed": seed}
    counts, raters = _equally_rated(shared)
    return [
        _as_record("percent_agreement", of, percent_agreement(rows, **options), len(shared)),
        _as_record("krippendorff_alpha", of, krippendorff_alpha(rows, level=level, **options), len(shared)),
        _as_record("fleiss_kappa", of, fleiss_kappa(counts, **options), len(counts)) if raters else
        Agreement(statistic="fleiss_kappa", of=of, value=None, units=0),
    ]  # fmt: skip


def _equally_rated(units: Sequence[Counter[Any]]) -> tuple[list[list[int]], int]:
    """The units with the commonest number of ratings, as counts: Fleiss' κ wants the same number everywhere."""
    raters = Counter(unit.total() for unit in units).most_common(1)[0][0]
    chosen = [unit for unit in units if unit.total() == raters]
    categories = sorted({category for unit in chosen for category in unit}, key=str)
    return [[unit[category] for category in categories] for unit in chosen], raters


def _score_tables(votes: Sequence[Vote]) -> dict[str, dict[str, list[int | None]]]:
    scored: dict[str, dict[tuple[str, str], int]] = {}
    for vote in votes:
        for name, score in vote.criteria.items():
            criterion, _, response = name.partition(":")
            if response:
                scored.setdefault(criterion, {})[vote.rater, f"{vote.comparison_id}:{response}"] = score
    tables: dict[str, dict[str, list[int | None]]] = {}
    for criterion, scores in scored.items():
        units = sorted({unit for _, unit in scores})
        raters = sorted({rater for rater, _ in scores})
        tables[criterion] = {rater: [scores.get((rater, unit)) for unit in units] for rater in raters}
    return tables


def _as_record(statistic: str, of: str, estimate: Estimate, units: int) -> Agreement:
    value = None if estimate != estimate else float(estimate)  # NaN: undefined
    return Agreement(statistic=statistic, of=of, value=value, low=estimate.low, high=estimate.high, units=units)
