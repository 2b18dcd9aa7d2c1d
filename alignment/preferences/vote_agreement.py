"""How far the votes agree: overall, and for every criterion that raters scored.

Overall, what was rated are pairs of answers and the ratings are left, right, tie or both bad. Of thumbs, what was rated
are single answers, and the ratings are up or down. For a criterion, what was
rated are answers and the ratings are scores; votes carry them as ``criteria["CRITERION:RESPONSE"]``.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

from pydantic import Field

from alignment.evaluation.agreement import Estimate, fleiss_kappa, krippendorff_alpha, percent_agreement
from alignment.evaluation.win_rate import Rate, win_rate
from alignment.preferences.consensus import current_votes, rating_table, vote_age
from alignment.records import Comparison, Record, Vote


class Agreement(Record):
    """One statistic. ``value`` is None where it is undefined; ``units`` is how many were rated at least twice."""

    statistic: str
    of: str  # "verdict", "thumb", or a criterion's name
    value: float | None
    low: float | None = None  # 95 % bootstrap interval over prompts
    high: float | None = None
    units: int = Field(ge=0)


def agreement_figures(
    comparisons: Sequence[Comparison], votes: Iterable[Vote], *, bootstrap: int = 0, seed: int = 0
) -> list[Agreement]:
    """Percent agreement, Krippendorff's α and Fleiss' κ of the verdicts, those of thumbs where there are some, then α
    (ordinal) and κ of every criterion."""
    current = current_votes(votes)
    prompts = {comparison.id: comparison.prompt.id for comparison in comparisons}
    options = {"bootstrap": bootstrap, "seed": seed}
    figures = figures_of(
        "verdict", rating_table(comparisons, current), verdict_prompts(comparisons), "nominal", options
    )
    answers, thumbs = _thumb_table(current)
    if answers:
        figures += figures_of("thumb", thumbs, [prompts.get(one, one) for one in answers], "nominal", options)
    for criterion, (units, table) in sorted(_score_tables(current).items()):
        clusters = [prompts.get(comparison, comparison) for comparison, _response in units]
        figures += figures_of(criterion, table, clusters, "ordinal", options)
    return figures


def verdict_prompts(comparisons: Sequence[Comparison]) -> list[str]:
    """The prompt of every verdict, in the order of :func:`rating_table`: what its pairs of answers have in common."""
    return [comparison.prompt.id for comparison in comparisons for _pair in combinations(comparison.responses, 2)]


def figures_of(
    of: str, table: Mapping[str, Sequence[Any]], clusters: Sequence[str], level: Any, options: Mapping[str, int]
) -> list[Agreement]:
    rows = [list(row) for row in table.values()]
    units = [Counter(one for one in unit if one is not None) for unit in zip(*rows, strict=True)]
    shared = [(unit, cluster) for unit, cluster in zip(units, clusters, strict=False) if unit.total() >= 2]
    if not shared:
        names = ("percent_agreement", "krippendorff_alpha", "fleiss_kappa")
        return [Agreement(statistic=name, of=of, value=None, units=0) for name in names]
    counts, own = _equally_rated(shared)
    share = percent_agreement(rows, **options, clusters=clusters)
    alpha = krippendorff_alpha(rows, level=level, **options, clusters=clusters)
    return [
        _as_record("percent_agreement", of, share, len(shared)),
        _as_record("krippendorff_alpha", of, alpha, len(shared)),
        _as_record("fleiss_kappa", of, fleiss_kappa(counts, **options, clusters=own), len(counts)),
    ]


def _equally_rated(units: Sequence[tuple[Counter[Any], str]]) -> tuple[list[list[int]], list[str]]:
    """The units with the commonest number of ratings (of several, the largest), as counts, and their clusters: Fleiss'
    κ wants the same number everywhere."""
    sizes = Counter(unit.total() for unit, _cluster in units)
    raters = max(sizes, key=lambda size: (sizes[size], size))
    chosen = [(unit, cluster) for unit, cluster in units if unit.total() == raters]
    categories = sorted({category for unit, _cluster in chosen for category in unit}, key=str)
    return [[unit[category] for category in categories] for unit, _cluster in chosen], [c for _unit, c in chosen]


def _thumb_table(votes: Sequence[Vote]) -> tuple[list[str], dict[str, list[str | None]]]:
    """The single answers with a thumb, by their comparison, and what every rater said of each."""
    said = {
        (vote.rater, vote.comparison_id): str(vote.outcome)
        for vote in sorted(votes, key=vote_age)
        if vote.outcome in ("up", "down")
    }
    answers = sorted({answer for _rater, answer in said})
    raters = sorted({rater for rater, _answer in said})
    return answers, {rater: [said.get((rater, answer)) for answer in answers] for rater in raters}


Unit = tuple[str, str]  # a comparison and one of its answers


def _score_tables(votes: Sequence[Vote]) -> dict[str, tuple[list[Unit], dict[str, list[int | None]]]]:
    """By criterion, what was scored and every rater's scores of it."""
    scored: dict[str, dict[tuple[str, Unit], int]] = {}
    for vote in sorted(votes, key=vote_age):
        for name, score in vote.criteria.items():
            criterion, _, response = name.partition(":")
            if response:
                scored.setdefault(criterion, {})[vote.rater, (vote.comparison_id, response)] = score
    tables: dict[str, tuple[list[Unit], dict[str, list[int | None]]]] = {}
    for criterion, scores in scored.items():
        units = sorted({unit for _, unit in scores})
        raters = sorted({rater for rater, _ in scores})
        tables[criterion] = units, {rater: [scores.get((rater, unit)) for unit in units] for rater in raters}
    return tables


def _as_record(statistic: str, of: str, estimate: Estimate, units: int) -> Agreement:
    value = None if estimate != estimate else float(estimate)  # NaN: undefined
    return Agreement(statistic=statistic, of=of, value=value, low=estimate.low, high=estimate.high, units=units)


def share_of_votes(right: Sequence[float], *, votes: Sequence[int]) -> Rate:
    """The share of pairs that are right, with its 95 % interval; pairs of one vote are one observation.

    ``right`` holds 1, 0.5 or 0 for each pair, ``votes`` the vote that it is of.
    """
    return win_rate(right, clusters=votes)
