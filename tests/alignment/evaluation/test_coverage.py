"""Whether 95 % intervals hold the truth in 93-97 % of 1,000 simulated cases: every interval that the report shows.

win rates, whole and by slice · at equal length · reward accuracy · κ, α and agreement · calibration error · KL · means,
ratios and F1 of metrics, and leads in them · points, rise and fall of rewards · ratings of tournament and leaderboard.
"""

from collections.abc import Callable
from functools import cache
from itertools import combinations, pairwise
from math import comb

import numpy as np
import pytest
from numpy.random import Generator
from scipy.integrate import quad
from scipy.special import expit, ndtri

from alignment.evaluation.agreement import cohen_kappa, fleiss_kappa, krippendorff_alpha, percent_agreement
from alignment.evaluation.bootstrap import Sums, estimate, lead, mean, paired_bootstrap
from alignment.evaluation.calibration import calibration_error, expected_calibration_error
from alignment.evaluation.ratings import POINTS, bradley_terry
from alignment.evaluation.reward_kl_curve import shape
from alignment.evaluation.win_rate import (
    Games,
    Rate,
    length_controlled_win_rate,
    length_controlled_win_rates,
    win_rate,
)
from alignment.evaluation.win_test import widened
from alignment.metrics.kl import mean_kl
from alignment.metrics.measure import macro_f1

pytestmark = pytest.mark.slow
CASES = 1000


def coverage(case: Callable[[Generator], tuple[float, float]], truth: float, seed: int = 0) -> float:
    rng = np.random.default_rng(seed)
    intervals = [case(rng) for _ in range(CASES)]
    return sum(low <= truth <= high for low, high in intervals) / CASES


@cache
def rate_of(wins: int, ties: int, losses: int) -> Rate:
    return win_rate([1.0] * wins + [0.5] * ties + [0.0] * losses)


@pytest.mark.parametrize("n", [50, 200])
@pytest.mark.parametrize("shares", [(0.45, 0.1, 0.45), (0.6, 0.25, 0.15), (0.3, 0.0, 0.7), (0.1, 0.8, 0.1)])
def test_win_rate_interval(n: int, shares: tuple[float, float, float]) -> None:
    def case(rng: Generator) -> tuple[float, float]:
        rate = rate_of(*rng.multinomial(n, shares).tolist())
        return rate.low, rate.high

    assert 0.93 <= coverage(case, truth=shares[0] + shares[1] / 2) <= 0.97


@pytest.mark.parametrize("n", [20, 120])
@pytest.mark.parametrize("skewed", [False, True])
def test_paired_bootstrap_interval(n: int, skewed: bool) -> None:
    """At 20 prompts too, where plain percentiles are too narrow (Hesterberg 2015, section 4.3)."""

    def case(rng: Generator) -> tuple[float, float]:
        base = rng.normal(0, 3, size=n)
        change = rng.gamma(2, 0.5, size=n) if skewed else rng.normal(1, 1, size=n)
        difference = paired_bootstrap((base + change).tolist(), base.tolist(), seed=int(rng.integers(2**31)))
        return difference.low, difference.high

    assert 0.93 <= coverage(case, truth=1.0) <= 0.97


@pytest.mark.parametrize("n", [30, 150])
def test_ratios_of_sums_and_their_differences(n: int) -> None:
    """Nats per token, as of a perplexity: prompts of very different length, each token weighing the same."""

    def nats(rng: Generator, tokens: np.ndarray, hard: np.ndarray, each: float) -> Sums:
        rows = np.stack([rng.gamma(tokens * each * hard), tokens], axis=1)
        return Sums(rows, np.ones(n, dtype=np.bool_))

    def case(rng: Generator, *, of_lead: bool) -> tuple[float, float]:
        tokens, hard = rng.integers(5, 60, size=n).astype(float), rng.gamma(8, 1 / 8, size=n)
        mine, theirs = nats(rng, tokens, hard, 1.5), nats(rng, tokens, hard, 2.0)
        found = lead(mine, theirs) if of_lead else estimate(mine)
        return found.low, found.high

    assert 0.93 <= coverage(lambda rng: case(rng, of_lead=False), truth=1.5) <= 0.97
    assert 0.93 <= coverage(lambda rng: case(rng, of_lead=True), truth=-0.5) <= 0.97


@pytest.mark.parametrize("n", [60, 100])  # at 40 the second table is held in 97.8 %: too often, not too seldom
@pytest.mark.parametrize(
    "table",
    [
        ((0.40, 0.10), (0.15, 0.35)),
        ((0.70, 0.08), (0.07, 0.15)),
        ((0.25, 0.05, 0.05), (0.05, 0.2, 0.05), (0.1, 0.05, 0.2)),
    ],
)
def test_kappa_interval(n: int, table: tuple[tuple[float, ...], ...]) -> None:
    shares = np.array(table)
    chance = float(shares.sum(0) @ shares.sum(1))
    truth = (float(np.trace(shares)) - chance) / (1 - chance)

    def case(rng: Generator) -> tuple[float, float]:
        drawn = rng.choice(shares.size, size=n, p=shares.ravel())
        first, second = np.divmod(drawn, len(shares))
        kappa = cohen_kappa(first.tolist(), second.tolist(), bootstrap=1000, seed=int(rng.integers(2**31)))
        assert kappa.low is not None
        assert kappa.high is not None
        return kappa.low, kappa.high

    assert 0.93 <= coverage(case, truth) <= 0.97


def binned_error(loudness: float, spread: float, bins: int = 10) -> float:
    """The true ECE over ten bins of a model whose log-odds are N(0, spread²) and ``loudness`` times too large."""

    def gap(log_odds: float) -> float:
        density = np.exp(-(log_odds**2) / (2 * spread**2)) / (spread * np.sqrt(2 * np.pi))
        return float((expit(log_odds) - expit(log_odds / loudness)) * density)

    edges = np.linspace(0, 1, bins + 1)[1:-1]
    ends = [-12 * spread, *np.log(edges / (1 - edges)), 12 * spread]
    return sum(abs(quad(gap, low, high)[0]) for low, high in pairwise(ends))


def ece_case(rng: Generator, n: int, loudness: float, spread: float = 2.0) -> tuple[list[float], list[float]]:
    log_odds = rng.normal(0, spread, size=n)
    happened = rng.random(n) < expit(log_odds / loudness)
    return expit(log_odds).tolist(), happened.astype(float).tolist()


@pytest.mark.parametrize("n", [100, 500])
@pytest.mark.parametrize("loudness", [1.5, 3.0])
def test_calibration_error_interval(n: int, loudness: float) -> None:
    def case(rng: Generator) -> tuple[float, float]:
        found = calibration_error(*ece_case(rng, n, loudness), seed=int(rng.integers(2**31)))
        return found.low, found.high

    assert 0.93 <= coverage(case, binned_error(loudness, 2.0)) <= 0.97


def test_a_calibrated_models_error_is_zero_in_the_middle_and_its_interval_begins_there() -> None:
    """Plain ECE finds 0.08 of error on 200 predictions of a model that has none."""
    rng = np.random.default_rng(0)
    cases = [ece_case(rng, 200, 1.0) for _ in range(200)]
    found = [calibration_error(*case) for case in cases]
    assert np.mean([expected_calibration_error(*case) for case in cases]) > 0.05
    assert np.median([one.value for one in found]) < 0.01
    assert np.mean([one.low == 0 for one in found]) >= 0.93


def test_bradley_terry_interval() -> None:
    true = {"a": 0.9, "b": 0.3, "c": -0.2, "d": -1.0}
    names = sorted(true)
    rng = np.random.default_rng(0)
    covered = total = 0
    for seed in range(CASES):
        rows = []
        for _ in range(300):
            a, b = rng.choice(4, size=2, replace=False)
            won = rng.random() < expit(true[names[a]] - true[names[b]])
            rows.append((names[a], names[b], float(won)))
        for rating in bradley_terry(rows, bootstrap=200, seed=seed).values():
            assert rating.low is not None
            assert rating.high is not None
            total += 1
            covered += rating.low <= 1000 + POINTS * true[rating.player] <= rating.high
    assert 0.93 <= covered / total <= 0.97


def fresh(rng: Generator) -> int:
    return int(rng.integers(2**31))


@pytest.mark.parametrize("n", [60, 400])
@pytest.mark.parametrize(
    ("quality", "effect", "shift", "shares"),
    [(0.4, 1.0, 0.5, False), (1.0, -2.0, -0.8, False), (0.0, 1.0, 0.5, True), (0.4, 1.0, -1.0, False)],
)
def test_length_controlled_interval(n: int, quality: float, effect: float, shift: float, shares: bool) -> None:
    """Wins, and shares of preference, which scatter less; the truth is what the games at no difference would give."""

    def case(rng: Generator) -> tuple[float, float]:
        differences = rng.normal(100 * shift, 100, size=n)
        chance = expit(quality + effect * np.tanh(differences / 100))
        outcomes = rng.beta(1.5 * chance, 1.5 * (1 - chance)) if shares else (rng.random(n) < chance).astype(float)
        found = length_controlled_win_rate(outcomes.tolist(), differences.tolist(), [0.0] * n)
        assert found.low is not None
        assert found.high is not None
        return found.low, found.high

    assert 0.93 <= coverage(case, truth=float(expit(quality))) <= 0.97


def test_length_controlled_intervals_with_shared_difficulty() -> None:
    """Three players on 150 prompts that are as hard for all of them; the truth is over all prompts that there are."""
    players = {"a": (0.4, 1.0, 0.5), "b": (1.0, -1.5, -0.8), "c": (-1.0, 1.0, -0.5)}
    hardness = ndtri((np.arange(2000) + 0.5) / 2000)
    truth = {name: float(expit(quality + hardness).mean()) for name, (quality, _effect, _shift) in players.items()}
    rng = np.random.default_rng(0)
    covered = dict.fromkeys(players, 0)
    for _ in range(CASES):
        hard = rng.normal(size=150)
        games = {}
        for name, (quality, effect, shift) in players.items():
            differences = rng.normal(100 * shift, 100, size=150)
            wins = rng.random(150) < expit(quality + effect * np.tanh(differences / 100) + hard)
            games[name] = Games(wins.astype(float).tolist(), differences.tolist(), [0.0] * 150, range(150))
        for name, found in length_controlled_win_rates(games).items():
            assert found.low is not None
            assert found.high is not None
            covered[name] += found.low <= truth[name] <= found.high
    assert 0.93 <= sum(covered.values()) / (3 * CASES) <= 0.97


@pytest.mark.parametrize(("prompts", "pairs"), [(30, 36), (100, 6)])
def test_accuracy_on_several_pairs_a_prompt(prompts: int, pairs: int) -> None:
    """Counted as independent, 36 pairs a prompt are held in 57 %."""
    truth = float(expit(np.random.default_rng(1).normal(0.8, 1, 2_000_000)).mean())
    clusters = np.repeat(np.arange(prompts), pairs).tolist()

    def case(rng: Generator) -> tuple[float, float]:
        chance = np.repeat(expit(rng.normal(0.8, 1, size=prompts)), pairs)
        found = win_rate((rng.random(chance.size) < chance).astype(float).tolist(), clusters=clusters)
        return found.low, found.high

    assert 0.93 <= coverage(case, truth) <= 0.97


def tournament(rng: Generator, players: int, prompts: int) -> tuple[list[tuple[str, str, float]], list[int]]:
    """Every player against every other on every prompt. An answer's quality is its own: it shows in all its games."""
    quality = np.linspace(-0.6, 0.6, players)[:, None] + 1.5 * rng.normal(size=(players, prompts))
    rows, clusters = [], []
    for one, other in combinations(range(players), 2):
        won = rng.random(prompts) < expit(2 * (quality[one] - quality[other]))
        rows += [(str(one), str(other), float(outcome)) for outcome in won]
        clusters += list(range(prompts))
    return rows, clusters


@pytest.mark.parametrize("players", [6, 10])
def test_ratings_of_a_tournament(players: int) -> None:
    """Counted as independent, the games of six players are held in 0.83 and of ten in 0.72."""
    rng = np.random.default_rng(0)
    truth = {name: one.value for name, one in bradley_terry(tournament(rng, players, 40_000)[0]).items()}
    covered = total = 0
    for seed in range(200):
        rows, clusters = tournament(rng, players, 60)
        for rating in bradley_terry(rows, bootstrap=300, seed=seed, clusters=clusters).values():
            assert rating.low is not None
            assert rating.high is not None
            total += 1
            covered += rating.low <= truth[rating.player] <= rating.high
    assert 0.93 <= covered / total <= 0.97


def rankings(rng: Generator, count: int) -> tuple[list[list[int]], list[int]]:
    """Two raters' orders of the pairs of four answers: what is hard in one answer shows in three of its pairs."""
    rows: list[list[int]] = [[], []]
    clusters: list[int] = []
    for ranking in range(count):
        quality, hard = rng.normal(size=4), rng.gamma(1, 1)
        seen = [quality + hard * rng.normal(size=4) for _rater in range(2)]
        for one, other in combinations(range(4), 2):
            for row, own in zip(rows, seen, strict=True):
                row.append(int(own[one] > own[other]))
            clusters.append(ranking)
    return rows, clusters


@pytest.mark.parametrize("count", [40, 120])
def test_agreement_on_rankings(count: int) -> None:
    """α, κ and the share, with six pairs a ranking."""
    rows, _clusters = rankings(np.random.default_rng(1), 40_000)
    truths = [float(krippendorff_alpha(rows)), float(cohen_kappa(*rows)), float(percent_agreement(rows))]
    rng = np.random.default_rng(0)
    covered = np.zeros(3)
    for seed in range(CASES):
        rows, clusters = rankings(rng, count)
        found = [
            krippendorff_alpha(rows, bootstrap=500, seed=seed, clusters=clusters),
            cohen_kappa(*rows, bootstrap=500, seed=seed, clusters=clusters),
            percent_agreement(rows, bootstrap=500, seed=seed, clusters=clusters),
        ]
        covered += [(one.low or 0) <= truth <= (one.high or 0) for one, truth in zip(found, truths, strict=True)]
    assert (covered >= 0.93 * CASES).all(), covered
    assert (covered <= 0.97 * CASES).all(), covered


@pytest.mark.parametrize(("luck", "loudness"), [(1.0, 1.0), (1.0, 2.0), (1.0, 4.0)])
def test_calibration_error_on_several_pairs_a_prompt(luck: float, loudness: float) -> None:
    """Ten predictions a prompt that share its luck. With gaps taken without their signs it is held in up to 0.993."""
    n, each = 100, 10
    clusters = np.repeat(np.arange(n), each).tolist()

    def drawn(rng: Generator, prompts: int) -> tuple[np.ndarray, np.ndarray]:
        said = rng.normal(0, 2, size=(prompts, each))
        shared = rng.normal(0, luck, size=(prompts, 1))
        happened = rng.random((prompts, each)) < expit(said / loudness + shared)
        return expit(said).ravel(), happened.astype(float).ravel()

    truth = expected_calibration_error(*(side.tolist() for side in drawn(np.random.default_rng(9), 200_000)))

    def case(rng: Generator) -> tuple[float, float]:
        found = calibration_error(*(side.tolist() for side in drawn(rng, n)), seed=fresh(rng), clusters=clusters)
        return found.low, found.high

    assert 0.93 <= coverage(case, truth) <= 0.97


@pytest.mark.parametrize("n", [8, 16, 48])  # the shipped recipes' kl_prompts, the default, and more
@pytest.mark.parametrize("spread", [0.3, 0.4])
def test_kl_interval(n: int, spread: float) -> None:
    """KL of whole answers: positive and skewed, with this standard deviation on the log scale.

    At 0.5 eight prompts hold it in 0.922, where the bootstrap's interval of before had less.
    """

    def case(rng: Generator) -> tuple[float, float]:
        found = mean_kl(np.exp(rng.normal(-(spread**2) / 2, spread, size=n)).tolist(), max_new_tokens=64)
        assert found.low is not None
        assert found.high is not None
        return found.low, found.high

    assert 0.93 <= coverage(case, truth=1.0) <= 0.97


def labels(rng: Generator, n: int) -> np.ndarray:
    """Rows of macro F1: three labels of unlike frequency, four answers in five right."""
    wanted = rng.choice(3, size=n, p=[0.5, 0.3, 0.2])
    given = np.where(rng.random(n) < 0.8, wanted, rng.choice(3, size=n))
    one_hot = np.eye(3)
    return np.concatenate([one_hot[wanted] * one_hot[given], one_hot[given], one_hot[wanted]], axis=1)


@pytest.mark.parametrize("n", [100, 200])  # at 60 prompts it is held in 0.978: too often, not too seldom
def test_macro_f1_interval(n: int) -> None:
    truth = float(macro_f1(labels(np.random.default_rng(9), 2_000_000).sum(axis=0)))

    def case(rng: Generator) -> tuple[float, float]:
        found = estimate(Sums(labels(rng, n), np.ones(n, dtype=np.bool_), macro_f1), seed=fresh(rng))
        return found.low, found.high

    assert 0.93 <= coverage(case, truth) <= 0.97


@pytest.mark.parametrize("n", [60, 150])  # at 40 prompts it is held in 0.971
def test_mean_of_pass_at_k(n: int) -> None:
    """Chances in [0, 1] that pile up at both ends: pass@5 from twenty samples a prompt."""
    easy = np.random.default_rng(1).beta(0.4, 0.8, size=4_000_000)
    truth = float((1 - (1 - easy) ** 5).mean())
    passing = np.array([1 - comb(20 - right, 5) / comb(20, 5) for right in range(21)])

    def case(rng: Generator) -> tuple[float, float]:
        found = mean(passing[rng.binomial(20, rng.beta(0.4, 0.8, size=n))].tolist())
        return found.low, found.high

    assert 0.93 <= coverage(case, truth) <= 0.97


@pytest.mark.parametrize("n", [60, 150])
def test_several_raters_agreement(n: int) -> None:
    """Fleiss' κ of three raters, and the ordinal α of two on five grades, as criteria have it."""

    def grades(rng: Generator, units: int, raters: int, grades: int) -> np.ndarray:
        seen = rng.normal(size=(units, 1)) + 0.8 * rng.normal(size=(units, raters))
        return np.digitize(seen, np.linspace(-1, 1, grades - 1))

    def counts(rated: np.ndarray) -> np.ndarray:
        return np.stack([(rated == grade).sum(axis=1) for grade in range(3)], axis=1)

    many = np.random.default_rng(1)
    fleiss = float(fleiss_kappa(counts(grades(many, 200_000, 3, 3))))
    alpha = float(krippendorff_alpha(grades(many, 100_000, 2, 5).T, level="ordinal"))

    def of_fleiss(rng: Generator) -> tuple[float, float]:
        found = fleiss_kappa(counts(grades(rng, n, 3, 3)), bootstrap=500, seed=fresh(rng))
        return found.low or 0.0, found.high or 0.0

    def of_alpha(rng: Generator) -> tuple[float, float]:
        found = krippendorff_alpha(grades(rng, n, 2, 5).T, level="ordinal", bootstrap=500, seed=fresh(rng))
        return found.low or 0.0, found.high or 0.0

    assert 0.93 <= coverage(of_fleiss, fleiss) <= 0.97
    assert 0.93 <= coverage(of_alpha, alpha) <= 0.97


@pytest.mark.parametrize("prompts", [40, 120])
def test_reward_kl_points(prompts: int) -> None:
    """A snapshot's mean reward, each prompt's mean of a few answers, less the start's."""

    def case(rng: Generator) -> tuple[float, float]:
        found = mean((0.4 + rng.normal(0, 0.6, size=prompts) + rng.logistic(0, 0.6, size=prompts)).tolist())
        return found.low, found.high

    assert 0.93 <= coverage(case, truth=0.4) <= 0.97


@pytest.mark.parametrize("prompts", [40, 100])
def test_ratings_of_a_leaderboard(prompts: int) -> None:
    """Three versions that met on some prompts, each game judged by two who see the same answers."""
    truth = {"a": 0.6, "b": 0.0, "c": -0.6}

    def games(rng: Generator, count: int) -> tuple[list[tuple[str, str, float]], list[int]]:
        quality = {name: value + rng.normal(size=count) for name, value in truth.items()}
        rows, clusters = [], []
        for one, other in combinations(truth, 2):
            for place in np.flatnonzero(rng.random(count) < 0.8):
                for _judge in range(2):
                    won = rng.random() < expit(2 * (quality[one][place] - quality[other][place]))
                    rows.append((one, other, float(won)))
                    clusters.append(int(place))
        return rows, clusters

    points = {name: one.value for name, one in bradley_terry(games(np.random.default_rng(1), 40_000)[0]).items()}
    rng = np.random.default_rng(0)
    covered = total = 0
    for seed in range(300):
        rows, clusters = games(rng, prompts)
        for rating in bradley_terry(rows, bootstrap=300, seed=seed, clusters=clusters).values():
            total += 1
            covered += (rating.low or 0.0) <= points[rating.player] <= (rating.high or 0.0)
    assert 0.93 <= covered / total <= 0.97


@pytest.mark.parametrize("level", [0.025 / 5, 0.025 / 25])
@pytest.mark.parametrize("n", [60, 200])
def test_a_widened_interval_keeps_a_later_looks_level(n: int, level: float) -> None:
    """What a gate makes of a lead's 95 % interval at its 5th and 25th look: 4,000 leads of 0, skewed to either side."""
    rng = np.random.default_rng(0)
    passed = np.zeros(2)
    for _ in range(4000):
        scores = rng.gamma(2, 0.5, size=n) - 1
        for side, sign in enumerate((1, -1)):
            found = mean((sign * scores).tolist())
            passed[side] += widened(found.value, found.low, n, level) > 0
    assert (passed / 4000 <= 2 * level + 2 * np.sqrt(level / 4000)).all(), passed


@pytest.mark.parametrize(("points", "prompts", "together"), [(8, 60, 0.5), (15, 100, 0.9), (4, 40, 0.0)])
def test_flat_snapshots_neither_rose_nor_fell(points: int, prompts: int, together: float) -> None:
    """One in forty is meant for each; the best of flat snapshots, taken as it stands, rose in 0.26."""
    rng = np.random.default_rng(0)
    rose = fell = 0
    for _ in range(CASES):
        noise = rng.normal(size=(points, prompts))
        rewards = (np.sqrt(together) * rng.normal(size=prompts) + np.sqrt(1 - together) * noise).tolist()
        found = shape(range(points), [float(i) for i in range(points)], rewards, rewards, trained=True)
        rose += found.rise.low > 0
        fell += found.fall.high < 0
    assert rose / CASES <= 0.04
    assert fell / CASES <= 0.04
