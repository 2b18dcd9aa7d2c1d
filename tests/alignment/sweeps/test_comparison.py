"""Intervals of a sweep hold together as often as they say, over prompts and seeds; one is counted by hand."""

from itertools import combinations
from math import sqrt

import numpy as np
import pytest
from scipy.stats import t as student

from alignment.evaluation.bootstrap import averaged, lead
from alignment.sweeps.comparison import compare
from alignment.sweeps.crossed import crossed_lead
from tests.alignment.sweeps.worlds import sweep, true_mean

STRENGTHS = [0.0, 0.3, 0.9]


@pytest.mark.parametrize(("seeds", "seed_scatter"), [(2, 0.4), (3, 0.4), (4, 0.0)])
def test_all_intervals_cover_at_once(seeds: int, seed_scatter: float) -> None:
    """The differences of all prompts and all seeds, which the simulation knows, nineteen times in twenty."""
    truth = {f"v{place}": true_mean(one, seed_scatter=seed_scatter) for place, one in enumerate(STRENGTHS)}
    rng, sweeps, held, means_held = np.random.default_rng(seeds), 400, 0, 0
    for _ in range(sweeps):
        found = compare(sweep(rng, STRENGTHS, prompts=60, seeds=seeds, seed_scatter=seed_scatter))
        held += all(
            one.difference.low <= truth[one.left] - truth[one.right] <= one.difference.high
            for one in found.differences
        )  # fmt: skip
        means_held += all(one.low <= truth[name] <= one.high for name, one in found.means.items())
    room = 3 * sqrt(0.05 * 0.95 / sweeps)
    assert held / sweeps >= 0.95 - room
    assert means_held / sweeps >= 0.95 - room


def test_one_seed_is_compared_as_benchmarks_are() -> None:
    """Prompt by prompt, at 5 % over the number of comparisons."""
    values = sweep(np.random.default_rng(3), STRENGTHS, prompts=50, seeds=1, seed_scatter=0.0)
    found = compare(values)
    assert (found.seeds, found.prompts, len(found.differences)) == (1, 50, 3)
    for one, (left, right) in zip(found.differences, combinations(values, 2), strict=True):
        sides = (averaged(values[name][:, 0].tolist()) for name in (left, right))
        assert one.difference == lead(*sides, confidence=1 - 0.05 / 3)


def test_a_difference_by_hand() -> None:
    """Two variants, three prompts, two seeds: differences 1, 0 / 1, 1 / 0, 0 by prompt and seed."""
    mine, theirs = np.array([[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]]), np.array([[0.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    found = crossed_lead(mine, theirs, [mine, theirs], confidence=0.9)
    # Over prompts: means 1/2, 1, 0 and two of 0: mean 0.3, squares 0.04 + 0.49 + 3 * 0.09 = 0.8, by 4 and by 3 prompts.
    over_prompts = 0.8 / 4 / 3
    # Over seeds: means 2/3 and 1/3, whose variance is 1/18; by 2 seeds. Pooled it is the same: there is one pair.
    over_seeds = 1 / 18 / 2
    variance = over_prompts + over_seeds
    quantile = (over_prompts * student.isf(0.05, 2) + over_seeds * student.isf(0.05, 1)) / variance
    reach = quantile * sqrt(variance)
    assert (found.value, found.n) == (pytest.approx(0.5), 3)
    assert (found.low, found.high) == (pytest.approx(0.5 - reach), pytest.approx(0.5 + reach))


def test_the_best_and_who_is_told_apart_from_it() -> None:
    rng = np.random.default_rng(1)
    values = sweep(rng, [0.5, 0.5, -3.0], prompts=120, seeds=3, seed_scatter=0.05)
    found = compare(values)
    assert found.best in ("v0", "v1")
    assert found.worse == ("v2",)
    assert set(found.alike) | {found.best} == {"v0", "v1"}
    behind = found.behind("v2")
    assert behind is not None
    assert behind.value == pytest.approx(found.means[found.best].value - found.means["v2"].value)
    assert behind.low > 0
    assert found.behind(found.best) is None


def test_equal_variants_differ_by_nothing() -> None:
    own = sweep(np.random.default_rng(2), [0.2], prompts=20, seeds=2, seed_scatter=0.3)["v0"]
    found = compare({"one": own, "two": own.copy()})
    assert (found.best, found.alike, found.worse) == ("one", ("two",), ())
    behind = found.behind("two")
    assert behind is not None
    assert (behind.value, behind.low, behind.high) == (0.0, 0.0, 0.0)
