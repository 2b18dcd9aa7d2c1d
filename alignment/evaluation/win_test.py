"""Whether a win rate lies above a threshold, tested exactly at any level and number of prompts, and what that can see.

An interval from a normal approximation is honest at 95 % and many prompts. A gate asks at levels of one in ten thousand
and has ten prompts: there the chance of a wrong promotion is counted, not approximated.
"""

from functools import lru_cache
from math import ceil, log2, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln
from scipy.stats import binom, norm
from scipy.stats import t as student

from alignment.evaluation.win_rate import EVEN, Rate, tango_score, win_rate_bounds

Floats = NDArray[np.float64]

CONFIDENCE = 0.95  # of the intervals that an evaluation keeps
EXACT_UP_TO = 800  # prompts; above them the score statistic is as good as its exact distribution
NUISANCE = 60  # shares of lost prompts over which the worst case is sought
MOST_PROMPTS = 100_000


def decided(rate: Rate) -> tuple[int, int]:
    """Prompts won and prompts lost; the others tied, and decide nothing."""
    ahead = round((2 * rate.value - 1) * rate.n)
    return (rate.n - rate.ties + ahead) // 2, (rate.n - rate.ties - ahead) // 2


def p_value(rate: Rate, threshold: float = EVEN) -> float:
    """The chance of a win rate this high, or higher, where the true one is ``threshold`` (in (0, 1)): never too small.

    Against a half this is the sign test on the decided prompts, which is exact whatever the share of ties. Against any
    other threshold it is the unconditional test that orders results by Tango's score and takes the worst share of ties
    (Barnard 1945; for paired shares Sidik 2003, "Exact unconditional tests for testing non-inferiority in matched-pairs
    design", Statistics in Medicine 22, 265-278). With more than ``EXACT_UP_TO`` prompts the score's normal tail.
    """
    won, lost = decided(rate)
    if threshold == EVEN:
        return float(binom.sf(won - 1, won + lost, 0.5))
    lead = 2 * threshold - 1
    seen = float(tango_score(np.array([won]), np.array([lost]), rate.n, lead)[0])
    if rate.n > EXACT_UP_TO:
        return float(norm.sf(seen))
    wins, losses, ways, scores = _results(rate.n, lead)
    as_high = scores >= seen - 1e-9
    wins, losses, ways = wins[as_high], losses[as_high], ways[as_high]
    worst = 0.0
    for lose in np.linspace(max(0.0, -lead), (1 - lead) / 2, NUISANCE + 2)[1:-1]:
        win, tie = lose + lead, max(1 - 2 * lose - lead, 1e-300)
        chances = ways + wins * np.log(win) + losses * np.log(lose) + (rate.n - wins - losses) * np.log(tie)
        worst = max(worst, float(np.exp(chances).sum()))
    return min(1.0, worst)


@lru_cache(maxsize=4)
def _results(n: int, lead: float) -> tuple[Floats, Floats, Floats, Floats]:
    """Every result of ``n`` prompts: wins, losses, the logarithm of the orders it comes in, and its score."""
    wins, losses = np.meshgrid(np.arange(n + 1.0), np.arange(n + 1.0), indexing="ij")
    possible = wins + losses <= n
    wins, losses = wins[possible], losses[possible]
    ways = gammaln(n + 1) - gammaln(wins + 1) - gammaln(losses + 1) - gammaln(n - wins - losses + 1)
    return wins, losses, np.asarray(ways), tango_score(wins, losses, n, lead)


def lower_bound(rate: Rate, level: float) -> float:
    """The one-sided lower bound of a win rate at ``level``; at 0.025 the low end of its 95 % interval."""
    won, lost = decided(rate)
    return win_rate_bounds(won, lost, rate.n, confidence=1 - 2 * level)[0]


def wins_needed(decided_prompts: int, level: float) -> int:
    """How many of the decided prompts must be won for the sign test to hold at ``level``; one more than there are: none
    would do."""
    return int(binom.isf(level, decided_prompts, 0.5)) + 1


def widened(value: float, end: float, n: int, level: float) -> float:
    """An end of a mean's 95 % interval over ``n`` prompts, moved out to the one-sided ``level``.

    The distance grows as Student's quantiles do, which is what the interval was made with.
    """
    degrees = max(n - 1, 1)
    reach = student.isf(level, degrees) / student.isf((1 - CONFIDENCE) / 2, degrees)
    return value + (end - value) * float(reach)


def power(prompts: int, rate: float, level: float) -> float:
    """The chance that a version which truly wins ``rate`` of its prompts, none tied, passes at ``level``."""
    return float(binom.sf(wins_needed(prompts, level) - 1, prompts, rate))


def prompts_needed(rate: float, level: float, power_wanted: float = 0.8) -> int:
    """The fewest prompts with which a true win rate is seen at ``level`` with the power that is wanted.

    Without ties; where some tie and the rate is the same, fewer do, for ties scatter less. Raises ValueError for a rate
    that is not above a half.
    """
    if not EVEN < rate < 1:
        raise ValueError(f"a win rate above a half and below 1 is needed, not {rate}")
    reach = norm.isf(level) * 0.5 + norm.isf(1 - power_wanted) * sqrt(rate * (1 - rate))
    about = (reach / (rate - EVEN)) ** 2
    n = max(1, int(about * 0.8) - 20)
    while n < MOST_PROMPTS and power(n, rate, level) < power_wanted:
        n += 1
    return n


def fewest_decided(level: float) -> int:
    """With fewer decided prompts than these nothing passes at ``level``, not even if all are won."""
    return ceil(-log2(level) - 1e-12)
