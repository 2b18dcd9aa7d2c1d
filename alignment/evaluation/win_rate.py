"""How often one side wins: with an interval, and with length held equal."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from math import sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit, logit
from scipy.stats import norm
from scipy.stats import t as student

from alignment.evaluation import length_model
from alignment.evaluation.estimate import Estimate
from alignment.records import Record

Floats = NDArray[np.float64]

OUTCOMES = (0.0, 0.5, 1.0)  # loss, tie, win
EVEN = 0.5  # the win rate of equals


class Rate(Record):
    """A share of wins in [0, 1], ties counted half, with its confidence interval over ``n`` comparisons."""

    value: float
    low: float
    high: float
    n: int
    ties: int


def win_rate(
    outcomes: Sequence[float], *, confidence: float = 0.95, clusters: Sequence[Hashable] | None = None
) -> Rate:
    """The left side's win rate and its score interval.

    ``outcomes`` are 1 (left wins), 0.5 (tie) or 0, one for each comparison. ``clusters`` names for each what it hangs
    on (a prompt, a ranking); None: they are independent.

    With W wins, L losses and T ties, the rate is (1 + (W - L) / n) / 2, so its interval is the one of a difference of
    two multinomial shares: the score interval of Tango (1998, "Equivalence test and confidence interval for the
    difference in proportions for the paired-sample design", Statistics in Medicine 17, 891-908). It inverts the score
    test with the tie rate estimated under each hypothesis. Chosen because it is Wilson's interval when nothing ties,
    uses the smaller variance that ties bring when some do, and keeps an honest width at the edges, where a bootstrap
    of all wins or of all ties would claim certainty.

    Comparisons that hang together count as the smaller number of independent ones that would scatter as much (Kish
    1965; with the degrees of freedom of Korn and Graubard 1998): the same interval, with fewer wins, ties and losses.
    Where nothing scatters each cluster counts as one.

    Raises ValueError without outcomes, for any other outcome, a confidence outside (0, 1), or other than one cluster
    for each outcome.
    """
    values = _outcomes(outcomes)
    _check_confidence(confidence)
    n = values.size
    wins, losses = int((values == 1).sum()), int((values == 0).sum())
    z = float(norm.ppf((1 + confidence) / 2))
    share = 1.0 if clusters is None else _independent(values, clusters, z=z, confidence=confidence)
    low, high = _tango_interval(wins * share, losses * share, n * share, z=z)
    return Rate(value=float(values.mean()), low=(1 + low) / 2, high=(1 + high) / 2, n=n, ties=n - wins - losses)


def win_rate_bounds(wins: int, losses: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Both ends of :func:`win_rate`'s interval from the counts of independent comparisons."""
    _check_confidence(confidence)
    low, high = _tango_interval(wins, losses, n, z=float(norm.ppf((1 + confidence) / 2)))
    return (1 + low) / 2, (1 + high) / 2


class Games(NamedTuple):
    """One player's games: outcomes in [0, 1], both sides' lengths, and on which prompt each was; all (N,)."""

    outcomes: Sequence[float]
    left_lengths: Sequence[float]
    right_lengths: Sequence[float]
    prompts: Sequence[Hashable]


def length_controlled_win_rate(
    outcomes: Sequence[float],
    left_lengths: Sequence[float],
    right_lengths: Sequence[float],
    *,
    confidence: float = 0.95,
) -> Estimate:
    """The win rate the left side would have if both answers were equally long (Dubois et al. 2024, eq. 2).

    Fits logit P(left wins) = quality + effect * tanh(d / sd(d)), d = left - right length, and returns sigmoid(quality),
    the prediction at d = 0. ``outcomes`` are wins (1), ties (0.5) and losses (0), or preferences in [0, 1], one a
    prompt. Lengths may be in any one unit (tokens, words, characters). Of several models on the same prompts
    :func:`length_controlled_win_rates` knows more, the difficulty of each prompt.

    The value leans towards small length effects, as AlpacaEval's does (see
    :data:`~alignment.evaluation.length_model.PENALTY`); its interval does not: it is the profile likelihood's, whatever
    the effect is, and is wide where all differences go one way. Where the value lies outside of what the games alone
    say, the interval is extended to it. ``quality`` has no prior: where lengths are equal, or one side always wins, the
    result is the plain win rate with its interval. Swapping the sides gives 1 minus the result.

    Raises ValueError for unequal numbers of outcomes and lengths, bad outcomes, or lengths not finite.
    """
    values, differences = _preferences(outcomes), _differences(outcomes, left_lengths, right_lengths)
    _check_confidence(confidence)
    plain = float(values.mean())
    if plain in (0.0, 1.0) or (not differences.any() and np.isin(values, OUTCOMES).all()):
        rate = win_rate(values.tolist(), confidence=confidence)
        return Estimate(rate.value, rate.low, rate.high)
    x = length_model.standardised(differences)
    quality, _effect = length_model.fit(values, x, length_model.PENALTY * values.size)
    return _around(float(expit(quality)), *length_model.profile_interval(values, x, confidence=confidence))


def length_controlled_win_rates(games: Mapping[str, Games], *, confidence: float = 0.95) -> dict[str, Estimate]:
    """:func:`length_controlled_win_rate` of several players whose games share prompts, by player.

    The difficulty of each prompt, which all players share, is in the model: its prior is normal, with a standard
    deviation of half a unit of log-odds, and a player's rate is the mean over its prompts. Without it a player that
    writes more on the prompts where it does well would seem to win by length. The interval counts a prompt's games as
    one observation. Players without a shared prompt, or that always win or lose, get their own games' figure.

    Raises ValueError as :func:`length_controlled_win_rate` does, and for other than one prompt for each outcome.
    """
    _check_confidence(confidence)
    for player, one in games.items():
        if len(one.prompts) != len(one.outcomes):
            raise ValueError(f"{player} has {len(one.outcomes)} outcomes on {len(one.prompts)} prompts")
    met = Counter(prompt for one in games.values() for prompt in set(one.prompts))
    together = [
        player
        for player, one in games.items()
        if any(met[prompt] > 1 for prompt in one.prompts) and 0 < _preferences(one.outcomes).mean() < 1
    ]
    found = _jointly({player: games[player] for player in together}, confidence) if len(together) > 1 else {}
    return {
        player: found[player] if player in found else length_controlled_win_rate(*one[:3], confidence=confidence)
        for player, one in games.items()
    }


def _jointly(games: Mapping[str, Games], confidence: float) -> dict[str, Estimate]:
    place = {prompt: i for i, prompt in enumerate(dict.fromkeys(p for one in games.values() for p in one.prompts))}
    sizes = np.array([len(one.outcomes) for one in games.values()])
    table = length_model.Table(
        outcomes=np.concatenate([_preferences(one.outcomes) for one in games.values()]),
        x=np.concatenate([length_model.standardised(_differences(*one[:3])) for one in games.values()]),
        player=np.repeat(np.arange(len(games)), sizes),
        prompt=np.array([place[prompt] for one in games.values() for prompt in one.prompts], dtype=np.intp),
    )
    values, _influence = length_model.joint(table, length_model.PENALTY * sizes)
    centres, influence = length_model.joint(table, np.full(len(games), length_model.WEAK))
    found = {}
    for k, player in enumerate(games):
        prompts = len(set(games[player].prompts))
        tail = float(student.ppf((1 + confidence) / 2, max(prompts - 2, 1)))
        reach = tail * sqrt(float((influence[:, k] ** 2).sum()) * prompts / max(prompts - 2, 1))
        centre = float(logit(centres[k]))
        found[player] = _around(float(values[k]), float(expit(centre - reach)), float(expit(centre + reach)))
    return found


def _around(value: float, low: float, high: float) -> Estimate:
    return Estimate(value, min(low, value), max(high, value))


def _differences(outcomes: Sequence[float], left: Sequence[float], right: Sequence[float]) -> Floats:
    differences = np.asarray(left, dtype=np.float64) - np.asarray(right, dtype=np.float64)
    if differences.shape != (len(outcomes),):
        raise ValueError(f"{len(outcomes)} outcomes need as many lengths on each side, not {differences.shape}")
    if not np.isfinite(differences).all():
        raise ValueError("lengths must be finite")
    return differences


def _preferences(outcomes: Sequence[float]) -> Floats:
    values = np.asarray(outcomes, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError("a win rate needs at least one outcome")
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError("every outcome must lie between 0 (loss) and 1 (win)")
    return values


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}")


def _outcomes(outcomes: Sequence[float]) -> Floats:
    values = np.asarray(outcomes, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError("a win rate needs at least one outcome")
    if not np.isin(values, OUTCOMES).all():
        raise ValueError("every outcome must be 1 (win), 0.5 (tie) or 0 (loss)")
    return values


def _independent(values: Floats, clusters: Sequence[Hashable], *, z: float, confidence: float) -> float:
    """Which share of the comparisons counts, since others of their cluster say the same: in (0, 1]."""
    if len(clusters) != values.size:
        raise ValueError(f"{values.size} outcomes need as many clusters, not {len(clusters)}")
    place = {cluster: i for i, cluster in enumerate(dict.fromkeys(clusters))}
    index = np.array([place[cluster] for cluster in clusters])
    count = len(place)
    if count == values.size:
        return 1.0
    deviations = values - values.mean()
    apart = float((deviations**2).sum())
    if count == 1 or apart == 0:
        return count / values.size
    effect = float((np.bincount(index, deviations) ** 2).sum()) / apart * count / (count - 1)
    tail = float(student.ppf((1 + confidence) / 2, count - 1))
    return min(1.0, (z / tail) ** 2 / max(effect, 1e-9))


def _tango_interval(wins: float, losses: float, n: float, *, z: float) -> tuple[float, float]:
    """The interval of P(win) - P(loss), in [-1, 1]."""
    estimate = (wins - losses) / n

    def excess(delta: float) -> float:
        """How far the squared score statistic at ``delta`` lies above z², times the variance (never a division)."""
        variance = float(_null_variance(np.asarray(wins), np.asarray(losses), n, delta))
        return float((wins - losses - n * delta) ** 2 - z * z * n * variance)

    inside = 1e-9  # with ties only, the estimate itself is a root with no meaning: start just beside it
    low = -1.0 if losses == n else float(brentq(excess, -1.0, estimate - inside, xtol=1e-13))
    high = 1.0 if wins == n else float(brentq(excess, estimate + inside, 1.0, xtol=1e-13))
    return low, high


def tango_score(wins: Floats, losses: Floats, n: float, delta: float) -> Floats:
    """Tango's score statistic of each result under P(win) - P(loss) = ``delta``; standard normal for many prompts."""
    variance = np.maximum(n * _null_variance(wins, losses, n, delta), 1e-12)
    return np.asarray((wins - losses - n * delta) / np.sqrt(variance), dtype=np.float64)


def _null_variance(wins: Floats, losses: Floats, n: float, delta: float) -> Floats:
    """The variance of one outcome's win less loss, with the loss rate of maximum likelihood under ``delta``."""
    a, b, c = 2 * n, -wins - losses + (2 * n - wins + losses) * delta, -losses * delta * (1 - delta)
    loss_rate = (np.sqrt(np.maximum(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    return np.asarray(np.maximum(2 * loss_rate + delta - delta * delta, 0.0), dtype=np.float64)
