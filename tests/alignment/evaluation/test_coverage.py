"""Whether 95 % intervals hold the truth in 93-97 % of 1,000 simulated cases."""

from collections.abc import Callable
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from numpy.random import Generator
from scipy.integrate import quad
from scipy.special import expit

from alignment.evaluation.agreement import cohen_kappa
from alignment.evaluation.bootstrap import Sums, estimate, lead, paired_bootstrap
from alignment.evaluation.calibration import calibration_error, expected_calibration_error
from alignment.evaluation.ratings import POINTS, bradley_terry
from alignment.evaluation.win_rate import Rate, win_rate

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
