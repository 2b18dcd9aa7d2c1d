"""What the rule promises, counted in simulated sweeps: equal variants are rarely stopped, clear losers are."""

from math import sqrt

import numpy as np
import pytest
from scipy.stats import t as student

from alignment.evaluation.win_rate import win_rate
from alignment.evaluation.win_test import p_value
from alignment.sweeps.stopping import ERROR, clear_losers, level_of_a_test, looks_of
from tests.alignment.sweeps.worlds import Values, sweep

SWEEPS = 600
ROOM = 3 * sqrt(ERROR * (1 - ERROR) / SWEEPS)  # three standard errors of the count


def raced(values: Values, seeds: int) -> dict[str, int]:
    """A whole sweep: who was stopped, and after how many seeds."""
    stopped: dict[str, int] = {}
    for done in range(2, seeds):
        left = {name: own[:, :done] for name, own in values.items() if name not in stopped}
        for stop in clear_losers(left, variants=len(values), looks=looks_of(seeds)) if len(left) > 1 else []:
            stopped[stop.variant] = stop.seeds
    return stopped


@pytest.mark.parametrize(
    ("variants", "seeds", "prompts", "seed_scatter"),
    [(2, 3, 40, 0.0), (3, 3, 64, 0.3), (3, 5, 64, 0.6), (6, 4, 32, 0.3), (6, 3, 128, 1.0), (3, 3, 5, 0.3)],
)
def test_of_equal_variants_any_is_stopped_once_in_twenty_sweeps_at_most(
    variants: int, seeds: int, prompts: int, seed_scatter: float
) -> None:
    rng = np.random.default_rng(variants * 1000 + prompts)
    erred = sum(
        bool(raced(sweep(rng, [0.0] * variants, prompts=prompts, seeds=seeds, seed_scatter=seed_scatter), seeds))
        for _ in range(SWEEPS)
    )
    assert erred / SWEEPS <= ERROR + ROOM


def test_the_promise_holds_where_one_variants_seeds_scatter_three_times_as_much() -> None:
    """Seeds are taken to scatter alike in all variants; where they do not, the pair's own scatter counts."""
    rng, stopped = np.random.default_rng(5), 0
    for _ in range(SWEEPS):
        values = sweep(rng, [0.0] * 4, prompts=64, seeds=3, seed_scatter=0.2)
        values["wild"] = sweep(rng, [0.0], prompts=64, seeds=3, seed_scatter=0.6)["v0"]
        stopped += bool(raced(values, 3))
    assert stopped / SWEEPS <= ERROR + ROOM


def test_a_test_over_prompts_alone_would_not_keep_the_promise() -> None:
    """The same count, of a rule that takes one seed's models for the settings that made them: it can fail."""
    rng, erred = np.random.default_rng(7), 0
    level = level_of_a_test(3, 1)
    for _ in range(300):
        values = sweep(rng, [0.0] * 3, prompts=128, seeds=2, seed_scatter=0.6)
        chances = [
            p_value(win_rate((0.5 + np.sign((a - b).mean(axis=1)) / 2).tolist()))
            for name, a in values.items() for other, b in values.items() if name != other
        ]  # fmt: skip
        erred += min(chances) <= level
    assert erred / 300 > 4 * ERROR


def test_clear_losers_are_stopped_after_two_seeds_and_the_best_goes_on() -> None:
    rng, stopped, best_stopped = np.random.default_rng(11), 0, 0
    for _ in range(200):
        values = sweep(rng, [0.4, 0.3, 0.2, -3.0], prompts=64, seeds=3, seed_scatter=0.15)
        found = raced(values, 3)
        stopped += found.get("v3") == 2
        best_stopped += "v0" in found
    assert stopped >= 190
    assert best_stopped <= 200 * ERROR + 3 * sqrt(200 * ERROR)


def test_the_level_and_the_looks() -> None:
    assert [looks_of(seeds) for seeds in (1, 2, 3, 5)] == [0, 0, 1, 3]
    assert level_of_a_test(3, 2) == pytest.approx(0.05 / 12)


def test_a_stop_says_by_whom_and_by_how_much() -> None:
    """By hand: on each of 4 prompts, with each of 2 seeds, one wins and the other loses."""
    values = {"good": np.ones((4, 2)), "bad": np.zeros((4, 2)), "good too": np.ones((4, 2))}
    # Means over prompts are 1, and two prompts of 0 are added: their variance is 8/30, a fourth of it that of the mean.
    # Seeds do not scatter, so the degrees of freedom are those of 4 prompts.
    reach = student.isf(0.05 / 6, 3) * sqrt(8 / 30 / 4)
    assert 1 - reach < 0  # four prompts are too few
    assert clear_losers(values, variants=3, looks=1) == []
    many = {name: np.repeat(own, 4, axis=0) for name, own in values.items()}
    [stop] = clear_losers(many, variants=3, looks=1)
    variance = 16 / 18 * 2 / 17  # of 16 ones and 2 noughts: 16 * 2 / 18 / 17
    assert (stop.variant, stop.by, stop.seeds, stop.ahead.n) == ("bad", "good", 2, 16)
    assert stop.ahead.low == pytest.approx(1 - student.isf(0.05 / 6, 15) * sqrt(variance / 16))
