"""Bradley–Terry ratings over everything that ever played: one strength for each player from who beat whom."""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import log, sqrt

import evalica
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.special import expit, ndtr
from scipy.stats import t as student

Floats = NDArray[np.float64]
Results = tuple[tuple[int, int, float], ...]  # player, player, outcome for the first: 1 / 0.5 / 0

CENTRE = 1000.0
POINTS = 400 / log(10)  # rating points for one unit of log-odds: 400 points are odds of ten to one, as in Elo
NEWTON_STEPS = 100
VIRTUAL_TIES = 0.5  # of a game, for each pair that met, and only where no finite strengths fit best
_WINNER = {1.0: evalica.Winner.X, 0.5: evalica.Winner.Draw, 0.0: evalica.Winner.Y}


@dataclass(frozen=True, slots=True)
class Rating:
    """A player's strength on the Elo scale, relative to the mean (1000) of its own group.

    ``low`` and ``high`` are None without a bootstrap. Players of different ``group`` never met, not even through
    others: their ratings cannot be compared. ``smoothed``: someone in the group lost to nobody or beat nobody, so
    the figures lean on virtual ties and are only an order of magnitude.
    """

    player: str
    value: float
    low: float | None
    high: float | None
    games: int
    group: int
    smoothed: bool


def bradley_terry(
    comparisons: Iterable[tuple[str, str, float]],
    *,
    bootstrap: int = 0,
    seed: int = 0,
    confidence: float = 0.95,
    clusters: Sequence[Hashable] | None = None,
) -> dict[str, Rating]:
    """Ratings by player, best first (by group, the largest first, where the players fall apart into groups).

    Each row is (left, right, outcome), outcome 1 / 0.5 / 0 for left; a tie counts as half a win for both. A player
    who is 400 points ahead wins with odds of ten to one, as Elo has it.

    The strengths are the maximum likelihood ones (Bradley and Terry 1952; by `evalica`, Newman 2023's iteration). They
    exist where every split of a group has wins both ways (Ford 1957). Where they do not, half a virtual tie is added
    to each pair that met, in that group alone, which keeps an undefeated player's rating finite.

    ``bootstrap`` resamples give percentile intervals. It is Rubin's Bayesian bootstrap (1981): comparisons get random
    weights and none drops out, so no resample loses a player or takes a group apart, as plain resampling does.
    ``clusters`` names for each row what it hangs on, the prompt as a rule: its rows get one weight together, for they
    are no independent games (several raters of one pair, or several players' answers to one prompt). The percentiles
    are moved outwards as Student's t asks for so many clusters (Hesterberg 2015, section 4.3). With a single cluster
    there is no interval.

    The order of the rows does not matter. Raises ValueError for no rows, another outcome, a player against itself, or
    other than one cluster for each row.
    """
    rows, players = _checked(comparisons)
    if clusters is not None and len(clusters) != len(rows):
        raise ValueError(f"{len(rows)} comparisons need as many clusters, not {len(clusters)}")
    index = {player: i for i, player in enumerate(players)}
    counts = Counter((index[left], index[right], outcome) for left, right, outcome in rows)
    results: Results = tuple(sorted(counts))
    weights = np.array([counts[result] for result in results], dtype=np.float64)
    games = Counter(player for left, right, _ in rows for player in (left, right))

    ratings: list[Rating] = []
    rng = np.random.default_rng(seed)
    hangs = _per_cluster(rows, clusters, index, results)
    for group, members in enumerate(_groups(results, len(players))):
        inside = [i for i, (left, _, _) in enumerate(results) if left in members]
        table, own = tuple(results[i] for i in inside), weights[inside]
        smoothed = not _strongly_connected(table, members)
        values = _strengths(table, own, members, smoothed)
        low: list[float | None] = [None] * len(members)
        high: list[float | None] = [None] * len(members)
        independent = own.sum() if hangs is None else np.any(hangs[:, inside], axis=1).sum()
        if bootstrap > 0 and independent > 1:
            draws = _draws(rng, bootstrap, own, None if hangs is None else hangs[:, inside])
            resampled = _resampled(table, draws, members, smoothed, values)
            tail = student.ppf((1 + confidence) / 2, independent - 1) * sqrt(independent / (independent - 1))
            low, high = np.quantile(resampled, ndtr([-tail, tail]), axis=0).tolist()
        for i, player in enumerate(members):
            name = players[player]
            ratings.append(Rating(name, float(values[i]), low[i], high[i], games[name], group, smoothed))
    ratings.sort(key=lambda rating: (rating.group, -rating.value, rating.player))
    return {rating.player: rating for rating in ratings}


def _checked(comparisons: Iterable[tuple[str, str, float]]) -> tuple[list[tuple[str, str, float]], list[str]]:
    rows = [(left, right, float(outcome)) for left, right, outcome in comparisons]
    if not rows:
        raise ValueError("ratings need at least one comparison")
    for left, right, outcome in rows:
        if left == right:
            raise ValueError(f"{left} cannot play against itself")
        if outcome not in _WINNER:
            raise ValueError(f"every outcome must be 1, 0.5 or 0, not {outcome} ({left} against {right})")
    return rows, sorted({player for left, right, _ in rows for player in (left, right)})


def _per_cluster(
    rows: Sequence[tuple[str, str, float]],
    clusters: Sequence[Hashable] | None,
    index: Mapping[str, int],
    results: Results,
) -> Floats | None:
    """How often each cluster has each result, (clusters, results), in an order that no name and no row decides."""
    if clusters is None:
        return None
    column = {result: i for i, result in enumerate(results)}
    place = {cluster: i for i, cluster in enumerate(dict.fromkeys(clusters))}
    table = np.zeros((len(place), len(results)))
    for (left, right, outcome), cluster in zip(rows, clusters, strict=True):
        table[place[cluster], column[index[left], index[right], outcome]] += 1
    return np.asarray(table[np.lexsort(table.T)])


def _draws(rng: np.random.Generator, resamples: int, counts: Floats, hangs: Floats | None) -> Floats:
    """Random weights of the results, (resamples, results), that sum to the comparisons: a row, or a cluster, has a
    standard exponential weight, and a result the sum of its own."""
    if hangs is None:
        draws = rng.gamma(counts, size=(resamples, counts.size))
    else:
        here = hangs[np.any(hangs, axis=1)]
        draws = rng.exponential(size=(resamples, len(here))) @ here
    return np.asarray(draws * (counts.sum() / draws.sum(axis=1, keepdims=True)), dtype=np.float64)


def _groups(results: Results, players: int) -> list[list[int]]:
    """The connected components, largest first; members ascending."""
    left, right = np.array([result[:2] for result in results]).T
    count, labels = connected_components(
        coo_array((np.ones(left.size), (left, right)), shape=(players, players)), False
    )
    groups = [np.flatnonzero(labels == label).tolist() for label in range(count)]
    return sorted(groups, key=lambda members: (-len(members), members))


def _strongly_connected(results: Results, members: Sequence[int]) -> bool:
    """Whether wins (a tie counts both ways) lead from each player to every other."""
    position = {player: i for i, player in enumerate(members)}
    edges = [(position[a], position[b]) for a, b, outcome in results if outcome > 0]
    edges += [(position[b], position[a]) for a, b, outcome in results if outcome < 1]
    winner, loser = np.array(edges).T
    graph = coo_array((np.ones(winner.size), (winner, loser)), shape=(len(members), len(members)))
    return bool(connected_components(graph, directed=True, connection="strong")[0] == 1)


def _strengths(results: Results, weights: Floats, members: Sequence[int], smoothed: bool) -> Floats:
    """Ratings of one group's members, in their order."""
    rows, shares = list(results), weights.tolist()
    if smoothed:
        met = sorted({(min(a, b), max(a, b)) for a, b, _ in results})
        rows += [(a, b, 0.5) for a, b in met]
        shares += [VIRTUAL_TIES] * len(met)
    fit = evalica.bradley_terry(
        [a for a, _, _ in rows],
        [b for _, b, _ in rows],
        [_WINNER[outcome] for _, _, outcome in rows],
        weights=shares,
        tolerance=1e-8,
        limit=100_000,
    )
    log_odds = np.log(fit.scores.loc[list(members)].to_numpy(dtype=np.float64))
    return np.asarray(CENTRE + POINTS * (log_odds - log_odds.mean()), dtype=np.float64)


def _resampled(results: Results, weights: Floats, members: Sequence[int], smoothed: bool, start: Floats) -> Floats:
    """Ratings of one group's members under each row of ``weights`` (B, results): (B, members).

    `evalica` solves one set of weights at a time. Here Newton's method solves all of them at once from the ratings
    ``start``, near which they lie. The likelihood is concave, and no step may be longer than odds of e² to one.
    """
    place = {player: i for i, player in enumerate(members)}
    wins = np.zeros((len(weights), len(members), len(members)))
    for column, (a, b, outcome) in enumerate(results):
        wins[:, place[a], place[b]] += weights[:, column] * outcome
        wins[:, place[b], place[a]] += weights[:, column] * (1 - outcome)
    if smoothed:
        for a, b in {(min(a, b), max(a, b)) for a, b, _ in results}:
            wins[:, place[a], place[b]] += VIRTUAL_TIES / 2
            wins[:, place[b], place[a]] += VIRTUAL_TIES / 2
    met = wins + wins.transpose(0, 2, 1)
    won, size = wins.sum(axis=2), len(members)
    strengths = np.tile((start - CENTRE) / POINTS, (len(weights), 1))
    for _ in range(NEWTON_STEPS):
        expected = expit(strengths[:, :, None] - strengths[:, None, :])
        gradient = won - (met * expected).sum(axis=2)
        curvature = met * expected * (1 - expected)
        # Only differences of strengths count; the constant makes the matrix regular and keeps their mean.
        matrix = np.eye(size) * curvature.sum(axis=2)[:, :, None] - curvature + 1.0
        step = np.linalg.solve(matrix, gradient[:, :, None])[:, :, 0]
        longest = np.abs(step).max(axis=1, keepdims=True)
        strengths += step * np.minimum(1.0, 2.0 / np.maximum(longest, 1e-300))
        if longest.max() < 1e-9:
            break
    return np.asarray(CENTRE + POINTS * (strengths - strengths.mean(axis=1, keepdims=True)), dtype=np.float64)
