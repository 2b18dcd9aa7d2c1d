"""Whether 95 % intervals hold the truth in 93-97 % of 1,000 simulated cases."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.random import Generator

from alignment.evaluation.win_rate import paired_bootstrap, win_rate

CASES = 1000


def coverage(case: Callable[[Generator], tuple[float, float]], truth: float, seed: int = 0) -> float:
    rng = np.random.default_rng(seed)
    intervals = [case(rng) for _ in range(CASES)]
    return sum(low <= truth <= high for low, high in intervals) / CASES


@pytest.mark.slow
@pytest.mark.parametrize("n", [50, 200])
@pytest.mark.parametrize("shares", [(0.45, 0.1, 0.45), (0.6, 0.25, 0.15), (0.3, 0.0, 0.7), (0.1, 0.8, 0.1)])
def test_win_rate_interval(n: int, shares: tuple[float, float, float]) -> None:
    def case(rng: Generator) -> tuple[float, float]:
        rate = win_rate(rng.choice([1.0, 0.5, 0.0], size=n, p=shares).tolist())
        return rate.low, rate.high

    assert 0.93 <= coverage(case, truth=shares[0] + shares[1] / 2) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("skewed", [False, True])
def test_paired_bootstrap_interval(skewed: bool) -> None:
    def case(rng: Generator) -> tuple[float, float]:
        base = rng.normal(0, 3, size=120)
        change = rng.exponential(1, size=120) if skewed else rng.normal(1, 1, size=120)
        difference = paired_bootstrap((base + change).tolist(), base.tolist(), seed=int(rng.integers(2**31)))
        return difference.low, difference.high

    assert 0.93 <= coverage(case, truth=1.0) <= 0.97
