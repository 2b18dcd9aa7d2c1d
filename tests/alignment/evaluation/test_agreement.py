import math
from typing import Any

import krippendorff
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.inter_rater import aggregate_raters
from statsmodels.stats.inter_rater import fleiss_kappa as reference_fleiss_kappa

from alignment.evaluation.agreement import cohen_kappa, fleiss_kappa, krippendorff_alpha, percent_agreement

# 50 units: 20 both yes, 15 both no, 5 yes/no, 10 no/yes. p_o = 0.7, p_e = 0.5 × 0.6 + 0.5 × 0.4 = 0.5, κ = 0.4.
FIRST = ["yes"] * 20 + ["no"] * 15 + ["yes"] * 5 + ["no"] * 10
SECOND = ["yes"] * 20 + ["no"] * 15 + ["no"] * 5 + ["yes"] * 10


def test_cohen_kappa_by_hand() -> None:
    assert cohen_kappa(FIRST, SECOND) == pytest.approx(0.4)
    assert cohen_kappa([*FIRST, None, "yes"], [*SECOND, "no", math.nan]) == pytest.approx(0.4)
    assert cohen_kappa([1, 2, 1, 2], [2, 1, 2, 1]) == pytest.approx(-1.0)


def test_fleiss_kappa_of_the_1971_paper() -> None:
    table = [
        [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
    ]  # fmt: skip
    assert fleiss_kappa(table) == pytest.approx(0.2099, abs=5e-5)


# Krippendorff 2011, "Computing Krippendorff's alpha-reliability", section C: four observers, twelve units.
N = None
OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, N, N, N],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, N, 3],
    [N, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, N],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, N],
]


@pytest.mark.parametrize(
    ("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849), ("ratio", 0.797)]
)
def test_krippendorff_alpha_of_the_paper(level: Any, alpha: float) -> None:
    assert krippendorff_alpha(OBSERVERS, level=level) == pytest.approx(alpha, abs=1e-3)


def test_nominal_alpha_takes_any_categories() -> None:
    named = [[None if x is None else f"category {x}" for x in row] for row in OBSERVERS]
    assert krippendorff_alpha(named) == krippendorff_alpha(OBSERVERS)


def test_percent_agreement_by_hand() -> None:
    ratings = [["a", "a", "b", None], ["a", "b", "b", None], ["a", "b", None, "a"]]
    assert percent_agreement(ratings) == pytest.approx((1 + 1 / 3 + 1) / 3)


@given(st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=2, max_size=30))
def test_kappas_equal_their_reference_implementations(rows: list[tuple[int, int, int]]) -> None:
    data = np.array(rows)
    if len(np.unique(data[:, :2])) > 1:
        assert cohen_kappa(data[:, 0], data[:, 1]) == pytest.approx(cohen_kappa_score(data[:, 0], data[:, 1]))
    if len(np.unique(data)) > 1:
        counts = aggregate_raters(data)[0]
        assert fleiss_kappa(counts) == pytest.approx(reference_fleiss_kappa(counts))


@given(st.lists(st.tuples(*[st.integers(0, 2)] * 3), min_size=3, max_size=20), st.permutations([0, 1, 2]))
def test_agreement_is_blind_to_names_and_to_the_order_of_raters(
    rows: list[tuple[int, int, int]], order: list[int]
) -> None:
    data = np.array(rows).T
    renamed = [["xyz"[code] for code in data[rater]] for rater in order]
    for statistic in (percent_agreement, krippendorff_alpha):
        assert statistic(renamed) == pytest.approx(statistic(data), nan_ok=True)


def test_perfect_agreement_is_one_and_undefined_is_nan() -> None:
    perfect = [["a", "b", "a"], ["a", "b", "a"]]
    assert krippendorff_alpha(perfect) == cohen_kappa(*perfect) == percent_agreement(perfect) == 1.0
    same = [["a", "a"], ["a", "a"]]
    assert math.isnan(krippendorff_alpha(same))
    assert math.isnan(cohen_kappa(*same))
    assert math.isnan(fleiss_kappa([[2, 0], [2, 0]]))
    assert math.isnan(krippendorff_alpha([["a", "b"]]))  # one rater
    assert math.isnan(percent_agreement([]))


def test_bootstrap_gives_an_interval_around_the_value() -> None:
    kappa = cohen_kappa(FIRST, SECOND, bootstrap=500, seed=1)
    assert kappa.low is not None
    assert kappa.high is not None
    assert kappa.low < 0.4 < kappa.high
    # The large-sample standard error is √(p_o(1-p_o)/n)/(1-p_e) = 0.13, so the interval is about 0.51 wide.
    assert kappa.high - kappa.low == pytest.approx(0.51, abs=0.1)
    again = cohen_kappa(FIRST, SECOND, bootstrap=500, seed=1)
    assert (again.low, again.high) == (kappa.low, kappa.high)
    assert cohen_kappa(FIRST, SECOND).low is None
    alpha = krippendorff_alpha(OBSERVERS, bootstrap=100)
    assert alpha.low is not None
    assert alpha.high is not None
    assert alpha.low <= alpha <= alpha.high


def test_wrong_layouts_are_errors() -> None:
    with pytest.raises(ValueError, match="one length"):
        cohen_kappa([1, 2], [1])
    with pytest.raises(ValueError, match="same number of ratings"):
        fleiss_kappa([[2, 1], [1, 1]])
    with pytest.raises(ValueError, match="one entry per unit"):
        percent_agreement([[1, 2], [1]])


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval", "ratio"])
def test_alpha_is_the_krippendorff_librarys(level: Any) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        values = rng.integers(1, 6, size=(4, 30)).astype(float)
        values[rng.random(values.shape) < 0.3] = np.nan
        expected = krippendorff.alpha(reliability_data=values, level_of_measurement=level)
        assert krippendorff_alpha(values, level=level) == pytest.approx(expected)


def test_neither_order_nor_names_matter() -> None:
    rng = np.random.default_rng(3)
    table = rng.choice(["left", "right", "tie"], size=(3, 40))
    groups = rng.integers(0, 12, size=40).tolist()
    order = rng.permutation(40)
    renamed = {"left": "z", "right": 7, "tie": None.__class__}
    turned = [[renamed[one] for one in row] for row in table[::-1, order].tolist()]
    for statistic in (krippendorff_alpha, percent_agreement):
        one = statistic(table.tolist(), bootstrap=200, clusters=groups)
        other = statistic(turned, bootstrap=200, clusters=[f"p{groups[i]}" for i in order])
        assert one == pytest.approx(other)
        assert (one.low, one.high) == pytest.approx((other.low, other.high), abs=0.03)  # the same draws, other columns


def test_units_that_hang_together_are_resampled_as_one() -> None:
    """Every unit six times over: six times the data, and not a bit more to say."""
    rng = np.random.default_rng(4)
    one = rng.integers(0, 2, size=50)
    other = np.where(rng.random(50) < 0.8, one, 1 - one)
    alone = cohen_kappa(one.tolist(), other.tolist(), bootstrap=2000)
    repeated = np.repeat(one, 6).tolist(), np.repeat(other, 6).tolist()
    together = cohen_kappa(*repeated, bootstrap=2000, clusters=np.repeat(np.arange(50), 6).tolist())
    assert together == pytest.approx(alone)
    assert (together.low, together.high) == pytest.approx((alone.low, alone.high))
    blind = cohen_kappa(*repeated, bootstrap=2000)
    assert (blind.high or 0) - (blind.low or 0) < 0.6 * ((alone.high or 0) - (alone.low or 0))
    with pytest.raises(ValueError, match="as many clusters"):
        cohen_kappa([1, 2], [1, 2], clusters=["x"])


def test_full_agreement_on_a_few_pairs_is_not_certainty() -> None:
    """Wilson's lower end of 12 of 12 is 12 / (12 + z²) = 0.757, which beyond chance of 1/2 is 0.515."""
    row = ["left", "right"] * 6
    kappa = cohen_kappa(row, row, bootstrap=100)
    share = 12 / (12 + 1.959964**2)
    assert (kappa, kappa.low, kappa.high) == (1.0, pytest.approx((share - 0.5) / 0.5, abs=1e-6), 1.0)
    one_group = cohen_kappa(row, row, bootstrap=100, clusters=["p"] * 12)
    assert (one_group.low, one_group.high) == (None, None)


@pytest.mark.parametrize("pairs", [12, 20, 40])
def test_a_guessing_judge_does_not_reach_the_interval(pairs: int) -> None:
    """By its value alone κ is above 0.2 in 0.16 of cases on 20 pairs."""
    rng = np.random.default_rng(5)
    passed = 0
    for seed in range(300):
        known, guessed = rng.integers(0, 2, size=(2, pairs)).tolist()
        kappa = cohen_kappa(known, guessed, bootstrap=400, seed=seed)
        passed += kappa.low is not None and kappa.low >= 0.2
    assert passed / 300 <= 0.025
