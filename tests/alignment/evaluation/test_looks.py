"""Levels, overlaps and exact tests by hand and by enumeration; promotions in a year of nights by simulation."""

from datetime import UTC, datetime
from itertools import product

import numpy as np
import pytest
from numpy.random import Generator
from scipy.stats import binom, multinomial, norm

from alignment.evaluation.gate import Evidence, GateLook, GateVerdict, decide
from alignment.evaluation.looks import LEVEL, Look, earlier, held_out_set, level_of, overlap
from alignment.evaluation.win_rate import win_rate
from alignment.evaluation.win_test import (
    fewest_decided,
    lower_bound,
    p_value,
    power,
    prompts_needed,
    widened,
    wins_needed,
)
from alignment.recipe.gate import Condition, Gate

GATE = Gate(evaluation="evaluation", conditions=(Condition(metric="win_rate.base.rubric.low", above=0.5),))


def look(number: int, *, spends: bool = True) -> GateLook:
    return GateLook(number=number, prompts=400, level=level_of(number) if spends else LEVEL, spends=spends)


def verdict(wins: int, ties: int, losses: int, at: GateLook | None = None, gate: Gate = GATE) -> GateVerdict:
    rate = win_rate([1.0] * wins + [0.5] * ties + [0.0] * losses)
    stem = "win_rate.base.rubric"
    found = Evidence({f"{stem}.value": rate.value, f"{stem}.low": rate.low}, {stem: rate}, {stem: rate.n})
    return decide(gate, found, look=at)


def test_levels_of_a_year_sum_to_less_than_a_sixth() -> None:
    assert level_of(1) == 0.025
    assert level_of(20) == pytest.approx(0.00125)
    assert sum(map(level_of, range(1, 366))) == pytest.approx(0.025 * (np.log(365) + 0.57722 + 1 / 730), abs=1e-5)
    with pytest.raises(ValueError, match="counted from 1"):
        level_of(0)


def test_four_of_ten_decided_prompts_promote_nobody() -> None:
    """Chance wins all four of them in 1 / 16 of cases; the interval alone lies above a half."""
    check = verdict(4, 6, 0).checks[0]
    assert check.by is not None
    assert check.by > 0
    assert not check.passed
    assert "4 of 4 decided prompts won, and at least 10 must be decided" in str(check)
    few = GATE.model_copy(update={"least_decided": 1})
    assert not verdict(4, 6, 0, gate=few).passed
    assert not verdict(5, 5, 0, gate=few).passed  # 1 / 32
    assert verdict(6, 4, 0, gate=few).passed  # 1 / 64
    assert not verdict(9, 0, 0).passed
    assert verdict(10, 0, 0).passed


def test_the_sign_test_is_exact_for_every_number_of_prompts() -> None:
    """The chance that a no-better version passes a first look, counted over all results, whatever the ties."""
    few = GATE.model_copy(update={"least_decided": 1})
    for n, tie in product((5, 10, 17, 30), (0.0, 0.3, 0.7)):
        passes = 0.0
        for decided in range(n + 1):
            for won in range(decided + 1):
                chance = binom.pmf(decided, n, 1 - tie) * binom.pmf(won, decided, 0.5)
                if chance > 1e-12 and verdict(won, n - decided, decided - won, gate=few).passed:
                    passes += float(chance)
        assert passes <= LEVEL, (n, tie)


@pytest.mark.parametrize("level", [0.025, 0.0025])
@pytest.mark.parametrize("threshold", [0.4, 0.45])
def test_non_inferiority_is_exact_too(threshold: float, level: float) -> None:
    """A version that is worse by just the margin, on 40 prompts, with any share of ties: all results are counted."""
    n = 40
    rates = {
        (won, lost): win_rate([1.0] * won + [0.0] * lost + [0.5] * (n - won - lost))
        for won in range(n + 1) for lost in range(n + 1 - won)
    }  # fmt: skip
    passing = [key for key, rate in rates.items() if p_value(rate, threshold) <= level]
    assert passing
    for lose in np.linspace(1 - 2 * threshold + 0.005, 1 - threshold, 25):
        win = lose + 2 * threshold - 1
        trials = np.array([(won, lost, n - won - lost) for won, lost in passing])
        assert multinomial.pmf(trials, n, [win, lose, max(0.0, 1 - win - lose)]).sum() <= 1.001 * level


def test_a_later_look_asks_for_more() -> None:
    """35 of 50: the sign test's p is 0.0033, by the binomial distribution."""
    assert p_value(win_rate([1.0] * 35 + [0.0] * 15)) == pytest.approx(float(binom.sf(34, 50, 0.5)))
    assert verdict(35, 0, 15, look(1)).passed
    assert verdict(35, 0, 15, look(7)).passed  # 0.0036
    assert not verdict(35, 0, 15, look(8)).passed  # 0.0031
    assert verdict(35, 0, 15, look(8, spends=False)).passed
    check = verdict(35, 0, 15, look(8)).checks[0]
    assert check.level == pytest.approx(0.025 / 8)
    assert "at 0.31 %" in str(check)
    assert "35 of 50 decided prompts won, 36 asked" in str(check)


def test_a_verdict_says_which_look_it_was_and_what_it_spent() -> None:
    assert str(look(8)) == "look 8 at these 400 held-out prompts, held to 0.31 % one-sided"
    assert str(look(1, spends=False)) == "look 1 at these 400 held-out prompts, held to 2.5 % one-sided"
    assert str(look(4, spends=False)) == (
        "look 4 at these 400 held-out prompts, held to 2.5 % one-sided, as a first look would be; one that spends the "
        "level would be held to 0.62 %"
    )


def test_a_first_look_asks_what_the_report_shows() -> None:
    rate = win_rate([1.0] * 40 + [0.5] * 10 + [0.0] * 20)
    assert lower_bound(rate, 0.025) == pytest.approx(rate.low, abs=1e-9)
    assert verdict(40, 10, 20, look(1)).checks[0].value == rate.low


def test_other_intervals_grow_as_students_quantiles_do() -> None:
    """The mean of 20 normal values at 0.1 %: t(19) is 3.5794 there and 2.0930 at 2.5 % (any table)."""
    assert widened(1.0, 1.0 - 2.0930, 20, 0.001) == pytest.approx(1.0 - 3.5794, abs=1e-3)
    metrics = {"metric_lead.base.rouge_l.value": 1.0, "metric_lead.base.rouge_l.low": 0.3}
    gate = Gate(evaluation="e", conditions=(Condition(metric="metric_lead.base.rouge_l.low", above=0),))
    found = Evidence(metrics, sizes={"metric_lead.base.rouge_l": 20})
    assert decide(gate, found, look=look(1)).passed
    check = decide(gate, found, look=look(25)).checks[0]  # 1 - 0.7 * 3.5794 / 2.0930
    assert check.value == pytest.approx(-0.197, abs=1e-3)
    assert not check.passed
    unknown = decide(gate, Evidence(metrics), look=look(25)).checks[0]
    assert not unknown.passed
    assert "cannot be widened" in str(unknown)


def test_what_is_no_interval_is_the_same_at_every_look() -> None:
    gate = Gate(evaluation="e", conditions=(Condition(metric="kl", below=20),))
    assert decide(gate, {"kl": 19.0}, look=look(300)).passed


def numbered(first: int, last: int) -> list[str]:
    return [f"question {number}" for number in range(first, last)]


def test_a_set_is_its_prompts_in_any_order() -> None:
    one = held_out_set(numbered(0, 50))
    assert held_out_set(reversed(numbered(0, 50))) == one
    assert held_out_set([*numbered(0, 50), "question 3"]) == one
    assert held_out_set(numbered(0, 51)).digest != one.digest


@pytest.mark.parametrize(
    ("other", "share"),
    [(numbered(0, 101), 1.0), (numbered(0, 10), 1.0), (numbered(90, 190), 0.1), (numbered(91, 191), 0.09),
     (numbered(100, 200), 0.0)],
)  # fmt: skip
def test_overlap_is_the_share_of_the_smaller_set(other: list[str], share: float) -> None:
    one, two = held_out_set(numbered(0, 100)), held_out_set(other)
    assert overlap(one, two) == overlap(two, one) == pytest.approx(share)
    past = Look(identity="a", held_out=one, number=1, at=datetime.now(UTC), run="r", recipe="r", model="policy")
    assert len(earlier([past], two)) == (share >= 0.1)


@pytest.mark.parametrize(("shared", "size"), [(1500, 3000), (300, 3000), (3000, 3000), (0, 3000)])
def test_overlap_of_large_sets_is_estimated(shared: int, size: int) -> None:
    one = held_out_set(numbered(0, size))
    two = held_out_set(numbered(size - shared, 2 * size - shared))
    assert len(one.sketch) == 8 * 512
    assert overlap(one, two) == pytest.approx(shared / size, abs=0.07)


def test_power_is_the_binomials() -> None:
    """By simulation: how often 56 prompts of which 65 % are won pass the sign test at 2.5 %."""
    rng = np.random.default_rng(0)
    won = rng.binomial(56, 0.65, size=40_000)
    needed = wins_needed(56, 0.025)
    assert binom.sf(needed - 1, 56, 0.5) <= 0.025 < binom.sf(needed - 2, 56, 0.5)
    assert power(56, 0.65, 0.025) == pytest.approx((won >= needed).mean(), abs=0.01)


@pytest.mark.parametrize("level", [0.025, 0.025 / 20, 0.025 / 365])
@pytest.mark.parametrize("rate", [0.55, 0.6, 0.65])
def test_as_many_prompts_as_the_textbook_says(rate: float, level: float) -> None:
    """n = ((z_α / 2 + z_β √(p q)) / (p - 1/2))², for the binomial a little more (Fleiss et al. 2003, section 2.4)."""
    n = ((norm.isf(level) / 2 + norm.isf(0.2) * np.sqrt(rate * (1 - rate))) / (rate - 0.5)) ** 2
    found = prompts_needed(rate, level)
    assert power(found, rate, level) >= 0.8
    assert 0.97 * n <= found <= 1.1 * n + 10


def test_the_fewest_prompts_with_which_anything_passes() -> None:
    assert [fewest_decided(level) for level in (0.5, 0.0625, 0.025, 0.025 / 365)] == [1, 4, 6, 14]


def outcomes(rng: Generator, rate: float, tie: float, shared: np.ndarray, together: float) -> tuple[int, int]:
    """Wins and losses of one candidate; ``together``: how far it is lucky on the prompts that others were lucky on."""
    luck = np.sqrt(together) * shared + np.sqrt(1 - together) * rng.normal(size=shared.size)
    lose = 1 - rate - tie / 2
    chance = norm.cdf(luck)
    return int((chance > lose + tie).sum()), int((chance <= lose).sum())


def promotions(nights: int, years: int, *, together: float, tie: float, level_at: list[float]) -> float:
    """Wrong promotions a year of candidates that are no better, on 400 prompts that stay the same."""
    rng = np.random.default_rng(0)
    needed = {level: [wins_needed(m, level) for m in range(401)] for level in set(level_at)}
    wrong = 0
    for _ in range(years):
        shared = rng.normal(size=400)
        for night in range(nights):
            won, lost = outcomes(rng, 0.5, tie, shared, together)
            wrong += won >= needed[level_at[night]][won + lost]
    return wrong / years


@pytest.mark.parametrize(("together", "tie"), [(0.0, 0.2), (0.5, 0.0)])
def test_twenty_looks_promote_less_than_a_tenth(together: float, tie: float) -> None:
    """300 simulated sets of twenty looks; at a constant 2.5 % it is half a wrong promotion."""
    constant = promotions(20, 300, together=together, tie=tie, level_at=[LEVEL] * 20)
    spent = promotions(20, 300, together=together, tie=tie, level_at=[level_of(t) for t in range(1, 21)])
    assert constant > 0.3
    assert spent <= 0.09 + 3 * 0.02


@pytest.mark.slow
@pytest.mark.parametrize("together", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("tie", [0.0, 0.3])
def test_a_year_of_nights(together: float, tie: float) -> None:
    """100 simulated years: nine wrong promotions a year at a constant 2.5 %, at most one where levels are spent."""
    levels = [level_of(night) for night in range(1, 366)]
    assert promotions(365, 100, together=together, tie=tie, level_at=levels) <= 0.6
    if together == 0:
        assert 6 <= promotions(365, 20, together=0, tie=tie, level_at=[LEVEL] * 365) <= 11


@pytest.mark.parametrize("tie", [0.0, 0.2, 0.4])
@pytest.mark.parametrize("night", [1, 30, 365])
def test_a_better_candidate_is_promoted_whenever_it_comes(night: int, tie: float) -> None:
    """A true 62 % on 400 prompts, through the gate itself; 300 simulated candidates."""
    rng = np.random.default_rng(night)
    passed = 0
    for _ in range(300):
        won, lost = outcomes(rng, 0.62, tie, rng.normal(size=400), 0.0)
        passed += verdict(won, 400 - won - lost, lost, look(night)).passed
    assert passed / 300 >= 0.8
