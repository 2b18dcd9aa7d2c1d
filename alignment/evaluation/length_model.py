"""The regression behind length-controlled win rates: logit P(left wins) = quality + effect · x + prompt difficulty.

``x`` is tanh(length difference / its standard deviation), as in AlpacaEval 2.0 (Dubois et al. 2024, eq. 2). Here are
the fits and their intervals; what goes in and comes out is in :mod:`alignment.evaluation.win_rate`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit, logit
from scipy.stats import t as student

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

PENALTY = 0.0125
"""Precision of the normal prior (mean 0) on the length effect, for each prompt: what one game in twenty between equals
would say of it. It grows with the prompts, as the weight of AlpacaEval's regularising games does, for what it guards
against does not shrink with them either: prompts on which a model writes much are often those where it does well, and
that looks like an effect of length."""
DIFFICULTY_SPREAD = 0.5  # standard deviation of the prior on a prompt's difficulty, in log-odds
WEAK = 2.5**-2  # precision of the weakly informative prior (Gelman et al. 2008, in its Gaussian form)
NEWTON_STEPS = 200
LONGEST_STEP = 2.0  # of a Newton step, in log-odds
CLOSE = 1e-10
FURTHEST = 40.0  # log-odds in which an interval's ends are looked for


def standardised(differences: Floats) -> Floats:
    """tanh of the length differences (N,) over their standard deviation; their signs where they have no spread.

    A difference that is the same everywhere tells no effect of length from quality: the prior decides between them.
    """
    spread = float(differences.std())
    return np.asarray(np.tanh(differences / spread) if spread > 0 else np.sign(differences), dtype=np.float64)


def fit(outcomes: Floats, x: Floats, penalty: float) -> tuple[float, float]:
    """Quality and length effect that fit ``outcomes`` in [0, 1] best, the effect with a prior of precision ``penalty``.

    Outcomes are not all 0 nor all 1. Newton's method on a concave likelihood.
    """
    design = np.stack([np.ones_like(x), x], axis=1)
    precision = np.array([0.0, penalty])
    beta = np.array([logit(outcomes.mean()), 0.0])
    for _ in range(NEWTON_STEPS):
        p = expit(design @ beta)
        gradient = design.T @ (p - outcomes) + precision * beta
        step = np.linalg.solve((design * (p * (1 - p))[:, None]).T @ design + np.diag(precision), gradient)
        longest = float(np.abs(step).max())
        beta -= step * min(1.0, LONGEST_STEP / max(longest, CLOSE))
        if longest < CLOSE:
            break
    return float(beta[0]), float(beta[1])


def profile_interval(outcomes: Floats, x: Floats, *, confidence: float) -> tuple[float, float]:
    """The interval of σ(quality), in [0, 1]: all qualities that the profile likelihood allows, whatever the length
    effect is (its prior is the weak one).

    The likelihood is a quasi-likelihood (McCullagh and Nelder 1989, chapter 9), since ties and shares of preference
    scatter less than wins and losses: it is divided by the dispersion, and its quantile is Student's t. Two games, one
    of them won, that scatter as wins do are added to the dispersion, so that ties alone do not claim certainty.
    """
    n = outcomes.size
    quality, effect = fit(outcomes, x, WEAK)
    p = expit(quality + effect * x)
    free = max(n - 2, 1)
    scatter = (((outcomes - p) ** 2).sum() + 0.5) / ((p * (1 - p)).sum() + 0.5) * n / free
    limit = float(student.ppf((1 + confidence) / 2, free)) ** 2 / 2 * scatter
    best = _profile(quality, effect, outcomes, x)

    def beyond(at: float) -> float:
        return float(_profile(at, effect, outcomes, x) - best - limit)

    ends = []
    for way in (-1, 1):
        reach = 1.0
        while beyond(quality + way * reach) < 0 and reach < FURTHEST:
            reach *= 2
        inside = beyond(quality + way * reach) < 0  # the likelihood allows every quality on this side
        ends.append(quality + way * reach if inside else float(brentq(beyond, quality, quality + way * reach)))
    return float(expit(ends[0])), float(expit(ends[1]))


def _profile(quality: float, effect: float, outcomes: Floats, x: Floats) -> float:
    """The least penalised loss at ``quality``, whatever the effect; ``effect`` is where to start."""
    for _ in range(NEWTON_STEPS):
        p = expit(quality + effect * x)
        step = float((x @ (p - outcomes) + WEAK * effect) / ((x * x * p * (1 - p)).sum() + WEAK))
        effect -= float(np.clip(step, -LONGEST_STEP, LONGEST_STEP))
        if abs(step) < CLOSE:
            break
    logits = quality + effect * x
    return float((np.logaddexp(0, logits) - outcomes * logits).sum() + WEAK * effect**2 / 2)


@dataclass(frozen=True, slots=True)
class Table:
    """Games of several players on shared prompts, one row a game: ``player`` and ``prompt`` (N,) number from 0."""

    outcomes: Floats
    x: Floats
    player: Ints
    prompt: Ints

    @property
    def players(self) -> int:
        return int(self.player.max()) + 1

    @property
    def prompts(self) -> int:
        return int(self.prompt.max()) + 1


def joint(table: Table, penalty: Floats) -> tuple[Floats, Floats]:
    """The rate of each player at equal length, (K,), and what each prompt adds to it, (U, K), in log-odds.

    Each player has a quality and a length effect (prior precision ``penalty``, (K,)), each prompt a difficulty that all
    players share. The rate is the mean over a player's own prompts. A prompt's share is its influence (infinitesimal
    jackknife; Efron 1982, chapter 6) on the logit of the rate, everything being fitted again: their sum of squares is
    the squared standard error, with a prompt's games of all players resampled as one.
    """
    k, u = table.players, table.prompts
    beta, difficulty = _fit_joint(table, penalty)
    x, player, prompt = table.x, table.player, table.prompt
    p = expit(beta[player] + beta[k + player] * x + difficulty[prompt])
    matrix, cross, diagonal = _curvature(table, p, penalty)
    inner = np.linalg.inv(matrix - (cross / diagonal) @ cross.T)
    residuals = table.outcomes - p
    scores = np.zeros((u, 2 * k))
    np.add.at(scores, (prompt, player), residuals)
    np.add.at(scores, (prompt, k + player), residuals * x)
    moves = scores @ inner  # of the players' parameters, by each prompt; its own difficulty is profiled out
    equal = expit(beta[player] + difficulty[prompt])
    games = np.bincount(player, minlength=k)
    rates = np.bincount(player, equal, k) / games
    slope = np.zeros((k, 2 * k))  # of each rate by the players' parameters, through the difficulties too
    steep = equal * (1 - equal) / games[player]
    by_difficulty = -cross / diagonal  # d difficulty / d parameters: (2K, U)
    np.add.at(slope, (player, player), steep)
    np.add.at(slope, player, steep[:, None] * by_difficulty[:, prompt].T)
    influence = moves @ slope.T
    np.add.at(influence, (prompt, player), (equal - rates[player]) / games[player])
    return rates, influence / (rates * (1 - rates))


def _curvature(table: Table, p: Floats, penalty: Floats) -> tuple[Floats, Floats, Floats]:
    """The Hessian in blocks: of the players' parameters (2K, 2K), between them and difficulties (2K, U), and the
    diagonal of the difficulties (U,)."""
    k, u, x, player, prompt = table.players, table.prompts, table.x, table.player, table.prompt
    weight = p * (1 - p)
    matrix = np.zeros((2 * k, 2 * k))
    cross = np.zeros((2 * k, u))
    for row, column, value in ((0, 0, weight), (0, k, weight * x), (k, 0, weight * x), (k, k, weight * x * x)):
        np.add.at(matrix, (row + player, column + player), value)
    np.add.at(cross, (player, prompt), weight)
    np.add.at(cross, (k + player, prompt), weight * x)
    matrix[np.arange(k, 2 * k), np.arange(k, 2 * k)] += penalty
    return matrix, cross, np.asarray(np.bincount(prompt, weight, u) + DIFFICULTY_SPREAD**-2, dtype=np.float64)


def _fit_joint(table: Table, penalty: Floats) -> tuple[Floats, Floats]:
    """Qualities and length effects, (2K,), and difficulties, (U,), by Newton's method."""
    k, u, x, player, prompt = table.players, table.prompts, table.x, table.player, table.prompt
    games = np.bincount(player, minlength=k)
    plain = np.bincount(player, table.outcomes, k) / games
    beta, difficulty = np.concatenate([logit(plain), np.zeros(k)]), np.zeros(u)
    for _ in range(NEWTON_STEPS):
        p = expit(beta[player] + beta[k + player] * x + difficulty[prompt])
        residuals = p - table.outcomes
        first = np.concatenate([np.bincount(player, residuals, k), np.bincount(player, residuals * x, k)])
        first[k:] += penalty * beta[k:]
        second = np.bincount(prompt, residuals, u) + difficulty * DIFFICULTY_SPREAD**-2
        matrix, cross, diagonal = _curvature(table, p, penalty)
        step = np.linalg.solve(matrix - (cross / diagonal) @ cross.T, first - cross @ (second / diagonal))
        own = (second - cross.T @ step) / diagonal
        longest = max(float(np.abs(step).max()), float(np.abs(own).max()))
        scale = min(1.0, LONGEST_STEP / max(longest, CLOSE))
        beta, difficulty = beta - scale * step, difficulty - scale * own
        if longest < CLOSE:
            break
    return beta, difficulty
