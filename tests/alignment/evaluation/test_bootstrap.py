"""Intervals by resampling: against scipy, against closed forms, and where there is nothing to resample."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from alignment.evaluation.bootstrap import Sums, averaged, bootstrap, estimate, lead, paired_bootstrap, ratio


def test_it_is_scipys_bca_where_prompts_are_many() -> None:
    """At 2,000 prompts Student's t is the normal, and what is left is Efron's BCa."""
    values = np.random.default_rng(1).exponential(size=2000)
    found = estimate(averaged(values.tolist()), resamples=5000)
    reference = stats.bootstrap((values,), np.mean, n_resamples=5000, method="BCa", rng=np.random.default_rng(2))
    width = reference.confidence_interval.high - reference.confidence_interval.low
    assert found.low == pytest.approx(reference.confidence_interval.low, abs=0.05 * width)
    assert found.high == pytest.approx(reference.confidence_interval.high, abs=0.05 * width)


def test_few_prompts_get_students_interval() -> None:
    """Without skew the ends are nearly those of the t interval, which percentiles fall short of."""
    values = stats.norm.ppf((np.arange(12) + 0.5) / 12)
    found = estimate(averaged(values.tolist()), resamples=20_000)
    half = stats.t.ppf(0.975, 11) * values.std(ddof=1) / math.sqrt(12)
    assert found.high - found.low == pytest.approx(2 * half, rel=0.06)
    assert found.high + found.low == pytest.approx(0, abs=0.1)


def test_the_pairing_is_used() -> None:
    rng = np.random.default_rng(0)
    prompts = rng.normal(0, 10, size=200)  # prompts differ far more than the two versions do
    a, b = prompts + 0.5 + rng.normal(0, 0.5, 200), prompts + rng.normal(0, 0.5, 200)
    difference = paired_bootstrap(a.tolist(), b.tolist(), seed=3)
    assert difference.value == pytest.approx(float((a - b).mean()))
    assert difference.low < difference.value < difference.high
    assert difference.significant
    standard_error = float((a - b).std(ddof=1)) / math.sqrt(200)
    assert difference.high - difference.low == pytest.approx(2 * 1.97 * standard_error, rel=0.1)
    assert paired_bootstrap(a.tolist(), b.tolist(), seed=3) == difference


def test_equal_versions_do_not_differ_and_a_single_prompt_proves_nothing() -> None:
    same = [0.1, 0.2, 0.7]
    assert not paired_bootstrap(same, same).significant
    shifted = paired_bootstrap([1.1, 1.2, 1.7], same)
    assert (shifted.value, shifted.low, shifted.high) == (pytest.approx(1), pytest.approx(1), pytest.approx(1))
    assert not lead(averaged([3.0]), averaged([1.0])).significant


def test_sums_are_resampled_together() -> None:
    """A ratio of sums is no mean of ratios: two prompts of 1/1 and 1/3 make 2/4."""
    rows = np.array([[1.0, 1.0], [1.0, 3.0]])
    sums = Sums(rows, np.array([True, True]))
    assert estimate(sums).value == 0.5
    assert float(ratio(rows.sum(axis=0))) == 0.5


def test_prompts_that_a_metric_does_not_apply_to_are_left_out() -> None:
    found = estimate(averaged([1.0, None, 0.0, 1.0], binary=True))
    assert (found.value, found.n) == (pytest.approx(2 / 3), 3)
    gap = lead(averaged([1.0, None, 0.0], binary=True), averaged([0.0, None, 0.0], binary=True))
    assert (gap.value, gap.n) == (0.5, 2)
    other = lead(averaged([2.0, None, 1.0]), averaged([None, 3.0, 1.0]))  # an answer without words has no readability
    assert other.value == pytest.approx(1.5 - 2.0)
    for nothing in (averaged([None, None]), averaged([])):
        with pytest.raises(ValueError, match="no prompt"):
            estimate(nothing)


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=30))
@settings(deadline=None)
def test_an_interval_is_finite_and_in_order(values: list[float]) -> None:
    found = estimate(averaged(values), resamples=100)
    assert math.isfinite(found.low)
    assert found.low <= found.high
    assert min(values) - 1e-3 <= found.low
    assert found.high <= max(values) + 1e-3


@pytest.mark.parametrize(("a", "b"), [([1.0], [1.0]), ([1.0, 2.0], [1.0]), ([1.0, math.nan], [1.0, 2.0])])
def test_what_is_no_pair_of_samples_is_refused(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError, match=r"samples|finite"):
        paired_bootstrap(a, b)
    with pytest.raises(ValueError, match="at least one prompt"):
        bootstrap(np.empty((0, 2)), ratio)
