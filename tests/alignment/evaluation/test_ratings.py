import math
import random
from collections import Counter
from itertools import combinations

import evalica
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import log_expit

from alignment.evaluation import ratings as solver
from alignment.evaluation.ratings import POINTS, bradley_terry

Rows = list[tuple[str, str, float]]


def strengths(rows: Rows) -> dict[str, float]:
    """Log-odds strengths, mean 0, by maximising the likelihood directly."""
    players = sorted({player for left, right, _ in rows for player in (left, right)})
    left = np.array([players.index(a) for a, _, _ in rows])
    right = np.array([players.index(b) for _, b, _ in rows])
    outcome = np.array([o for _, _, o in rows])

    def loss(theta: np.ndarray) -> float:
        gap = theta[left] - theta[right]
        return float(-(outcome * log_expit(gap) + (1 - outcome) * log_expit(-gap)).sum() + 1e-9 * (theta**2).sum())

    theta = minimize(loss, np.zeros(len(players)), method="BFGS", options={"gtol": 1e-8}).x
    return dict(zip(players, theta - theta.mean(), strict=True))


def played(seed: int, true: dict[str, float], games: int, ties: float = 0.1) -> Rows:
    rng = random.Random(seed)
    rows: Rows = []
    for _ in range(games):
        a, b = rng.sample(sorted(true), 2)
        p = 1 / (1 + math.exp(true[b] - true[a]))
        rows.append((a, b, 0.5 if rng.random() < ties else float(rng.random() < p)))
    return rows


def test_two_players_by_hand() -> None:
    """Three wins to one are odds of 3: a gap of 400 · log10(3) points around 1000."""
    ratings = bradley_terry([("a", "b", 1), ("a", "b", 1), ("b", "a", 0), ("b", "a", 1)])
    assert list(ratings) == ["a", "b"]
    assert ratings["a"].value == pytest.approx(1000 + 200 * math.log10(3))
    assert ratings["b"].value == pytest.approx(1000 - 200 * math.log10(3))
    assert (ratings["a"].low, ratings["a"].games, ratings["a"].smoothed) == (None, 4, False)


def test_against_the_likelihood_and_evalica() -> None:
    rows = played(0, {"a": 1.0, "b": 0.3, "c": 0.0, "d": -0.8}, 400)
    ratings, reference = bradley_terry(rows), strengths(rows)
    winners = [{1.0: evalica.Winner.X, 0.5: evalica.Winner.Draw, 0.0: evalica.Winner.Y}[o] for _, _, o in rows]
    direct = evalica.bradley_terry(
        [a for a, _, _ in rows], [b for _, b, _ in rows], winners, solver="naive", tolerance=1e-12, limit=10_000
    ).scores
    assert list(ratings) == list(direct.index)
    for player, rating in ratings.items():
        assert (rating.value - 1000) / POINTS == pytest.approx(reference[player], abs=1e-4)
        assert (rating.value - 1000) / POINTS == pytest.approx(math.log(direct[player]), abs=1e-6)


def test_the_order_of_rows_does_not_matter() -> None:
    rows = played(1, {"a": 1.0, "b": 0.0, "c": -0.5}, 60)
    shuffled = [(b, a, 1 - o) for a, b, o in reversed(rows)]
    first, second = bradley_terry(rows), bradley_terry(shuffled)
    assert {p: r.value for p, r in first.items()} == pytest.approx({p: r.value for p, r in second.items()})
    again = bradley_terry(rows[::-1], bootstrap=50, seed=4)
    assert again == bradley_terry(rows, bootstrap=50, seed=4)


def test_an_undefeated_player_gets_a_finite_rating_above_the_rest() -> None:
    rows: Rows = [("star", "b", 1)] * 5 + [("star", "c", 1)] * 5 + [("b", "c", 1)] * 3 + [("b", "c", 0)] * 2
    ratings = bradley_terry(rows, bootstrap=100)
    assert list(ratings) == ["star", "b", "c"]
    assert all(rating.smoothed and math.isfinite(rating.value) for rating in ratings.values())
    more = bradley_terry(rows + [("star", "b", 1)] * 20)
    assert more["star"].value > ratings["star"].value  # more wins without loss still mean more
    assert ratings["star"].low is not None
    assert ratings["star"].low > 1000
    # With half a virtual tie for each pair, the fit is the likelihood's on the rows and those ties.
    half: Rows = rows * 2 + [("star", "b", 0.5), ("star", "c", 0.5), ("b", "c", 0.5)]
    assert (ratings["star"].value - 1000) / POINTS == pytest.approx(strengths(half)["star"], abs=1e-3)


def test_groups_that_never_met_are_told_apart() -> None:
    rows: Rows = [("a", "b", 1), ("a", "b", 0), ("b", "c", 1), ("b", "c", 0), ("x", "y", 1), ("x", "y", 1)]
    ratings = bradley_terry(rows, bootstrap=20)
    assert {player: rating.group for player, rating in ratings.items()} == {"a": 0, "b": 0, "c": 0, "x": 1, "y": 1}
    assert [ratings[p].smoothed for p in ("a", "x", "y")] == [False, True, True]
    assert ratings["a"].value == pytest.approx(1000)
    assert ratings["x"].value + ratings["y"].value == pytest.approx(2000)


def test_ties_only() -> None:
    ratings = bradley_terry([("a", "b", 0.5)] * 4, bootstrap=20)
    assert [rating.value for rating in ratings.values()] == pytest.approx([1000, 1000])
    assert not ratings["a"].smoothed


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("wxyz"), st.sampled_from([0, 0.5, 1])), min_size=1))
@settings(max_examples=50, deadline=None)
def test_any_tournament_has_finite_ratings_best_first(rows: Rows) -> None:
    ratings = list(bradley_terry(rows).values())
    assert all(math.isfinite(rating.value) for rating in ratings)
    assert [(r.group, -r.value) for r in ratings] == sorted((r.group, -r.value) for r in ratings)
    assert sum(rating.games for rating in ratings) == 2 * len(rows)


@pytest.mark.parametrize("rows", [[], [("a", "a", 1)], [("a", "b", 0.3)], [("a", "b", math.nan)]])
def test_bad_rows_are_refused(rows: Rows) -> None:
    with pytest.raises(ValueError, match=r"at least one|itself|outcome"):
        bradley_terry(rows)


def test_resampled_ratings_are_those_that_evalica_finds_one_by_one() -> None:
    rows = played(3, {"a": 1.0, "b": 0.3, "c": 0.0, "d": -0.8}, 80)
    for given_rows in (rows, [*rows, *([("star", "a", 1.0)] * 3)]):  # the second has an undefeated player
        counts = Counter(given_rows)
        names = sorted({player for row in given_rows for player in row[:2]})
        results = tuple(sorted((names.index(a), names.index(b), outcome) for a, b, outcome in counts))
        draws = np.random.default_rng(0).gamma(1.5, size=(20, len(results)))
        members, smoothed = list(range(len(names))), "star" in names
        start = solver._strengths(results, np.ones(len(results)), members, smoothed)
        together = solver._resampled(results, draws, members, smoothed, start)
        one_by_one = [solver._strengths(results, draw, members, smoothed) for draw in draws]
        assert together == pytest.approx(np.array(one_by_one), abs=0.01)


def test_games_that_hang_together_get_one_weight() -> None:
    """Every game four times over, by four raters of one pair: four times the rows, and the same interval."""
    rng = np.random.default_rng(0)
    rows = [("a", "b", float(rng.random() < 0.6)) for _ in range(60)]
    rows += [("b", "c", float(rng.random() < 0.6)) for _ in range(60)]
    alone = bradley_terry(rows, bootstrap=4000, clusters=range(120))
    order = rng.permutation(480)
    repeated, prompts = [row for row in rows for _ in range(4)], [place for place in range(120) for _ in range(4)]
    together = bradley_terry(
        [repeated[i] for i in order], bootstrap=4000, clusters=[f"prompt {prompts[i]}" for i in order]
    )
    blind = bradley_terry(repeated, bootstrap=4000)
    for player, one in alone.items():
        other, narrow = together[player], blind[player]
        assert other.value == pytest.approx(one.value)
        assert (other.low, other.high) == pytest.approx((one.low, one.high), abs=6)
        assert (narrow.high or 0) - (narrow.low or 0) < 0.6 * ((one.high or 0) - (one.low or 0))
    with pytest.raises(ValueError, match="as many clusters"):
        bradley_terry(rows, clusters=[1])
    assert bradley_terry(rows, bootstrap=10, clusters=["p"] * 120)["a"].low is None  # of one prompt nothing scatters


def test_six_players_on_the_same_prompts_are_held_as_often_as_is_said() -> None:
    """The whole simulation is in test_coverage; here 60 tournaments, of which 0.83 would be held game by game."""
    rng, covered, total = np.random.default_rng(1), 0, 0
    ability = np.linspace(-0.6, 0.6, 6)[:, None]

    def rows(prompts: int) -> tuple[list[tuple[str, str, float]], list[int]]:
        quality = ability + 1.5 * rng.normal(size=(6, prompts))
        games, places = [], []
        for one, other in combinations(range(6), 2):
            won = rng.random(prompts) < 1 / (1 + np.exp(2 * (quality[other] - quality[one])))
            games += [(str(one), str(other), float(outcome)) for outcome in won]
            places += list(range(prompts))
        return games, places

    truth = bradley_terry(rows(20_000)[0])
    for seed in range(60):
        games, places = rows(60)
        for player, rating in bradley_terry(games, bootstrap=200, seed=seed, clusters=places).items():
            total += 1
            covered += (rating.low or 0) <= truth[player].value <= (rating.high or 0)
    assert covered / total >= 0.91
