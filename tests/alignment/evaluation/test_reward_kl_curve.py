"""The mathematics of the gold-reward experiment, against enumeration and against curves that are known."""

from itertools import combinations
from math import log, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.evaluation.reward_kl_curve import best_of_kl, best_of_mean, best_of_weights, fit, powers_of_two, shape


@given(st.lists(st.tuples(st.integers(0, 1000), st.floats(-5, 5)), min_size=1, max_size=7), st.data())
def test_best_of_is_the_mean_over_all_subsets(rows: list[tuple[int, float]], data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(rows)))
    proxy = [place + 1000.0 * score for place, (score, _value) in enumerate(rows)]  # no two alike
    values = [value for _score, value in rows]
    chosen = [values[max(subset, key=lambda i: proxy[i])] for subset in combinations(range(len(rows)), n)]
    assert best_of_mean(proxy, values, n) == pytest.approx(sum(chosen) / len(chosen), abs=1e-9)


def test_best_of_one_is_the_mean_and_best_of_all_the_best() -> None:
    assert best_of_weights(4, 1) == [0.25] * 4
    assert best_of_weights(4, 4) == [0, 0, 0, 1]
    assert best_of_weights(4, 2) == pytest.approx([0, 1 / 6, 2 / 6, 3 / 6])
    for n in (0, 5):
        with pytest.raises(ValueError, match="4 answers"):
            best_of_weights(4, n)


def test_the_kl_of_best_of_n() -> None:
    assert best_of_kl(1) == 0
    assert best_of_kl(2) == pytest.approx(log(2) - 0.5)


def test_powers_end_at_the_most() -> None:
    assert powers_of_two(2) == [1, 2]
    assert powers_of_two(16) == [1, 2, 4, 8, 16]
    assert powers_of_two(20) == [1, 2, 4, 8, 16, 20]


@pytest.mark.parametrize("trained", [True, False])
def test_the_fit_finds_the_curve_that_it_was_given(trained: bool) -> None:
    kl = [0.0, 0.5, 1.0, 4.0, 16.0, 30.0]
    rewards = [0.0] + [sqrt(k) * (1.2 - 0.3 * (log(sqrt(k)) if trained else sqrt(k))) for k in kl[1:]]
    assert fit(kl, rewards, trained=trained) == pytest.approx((1.2, 0.3))
    assert fit([0.0, 1.0, 2.0], [0.0, 1.0, 2.0], trained=trained) == (None, None)


def way(*means: float, spread: float = 0.3) -> list[list[float]]:
    noise = spread * np.random.default_rng(0).standard_normal(50)
    return [(mean + noise * (mean != 0)).tolist() for mean in means]


@pytest.mark.parametrize(
    ("true", "proxy", "words"),
    [
        ((0.0, 1.0, 0.2), (0.0, 1.0, 2.0), "rose, then fell"),
        ((0.0, 0.5, 1.0), (0.0, 1.0, 2.0), "rose, and no fall shows"),
        ((0.0, -0.5, -1.0), (0.0, 1.0, 2.0), "fell without having risen"),
        ((0.0, 0.01, 0.0), (0.0, 1.0, 2.0), "did not follow the proxy, which rose"),
        ((0.0, 0.01, 0.0), (0.0, 0.01, 0.01), "no change shows, nor does the proxy's"),
    ],
)
def test_the_shape_says_what_the_intervals_allow(true: tuple[float, ...], proxy: tuple[float, ...], words: str) -> None:
    found = shape([0, 10, 20], [0.0, 1.0, 4.0], way(*true), way(*proxy), trained=True)
    assert found.words == words
    assert found.best_step == [0, 10, 20][int(np.argmax(true))] or true[1] == 0.01
