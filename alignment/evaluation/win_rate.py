"""How often one side wins: with an interval, and with length held equal."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize
from scipy.special import expit, log_expit
from scipy.stats import norm

from alignment.records import Record

Floats = NDArray[np.float64]

LENGTH_EFFECT_SCALE = 2.5  # standard deviation of the prior on the length coefficient, in log-odds


class Rate(Record):
    """A share of wins in [0, 1], ties counted half, with its confidence interval over ``n`` comparisons."""

    value: float
    low: float
    high: float
    n: int
    ties: int


def win_rate(outcomes: Sequence[float], *, confidence: float = 0.95) -> Rate:
    """The left side's win rate and its score interval.

    ``outcomes`` are 1 (left wins), 0.5 (tie) or 0, one for each independent comparison.

    With W wins, L losses and T ties, the rate is (1 + (W - L) / n) / 2, so its interval is the one of a difference of
    two multinomial shares: the score interval of Tango (1998, "Equivalence test and confidence interval for the
    difference in proportions for the paired-sample design", Statistics in Medicine 17, 891-908). It inverts the score
    test with the tie rate estimated under each hypothesis. Chosen because it is Wilson's interval when nothing ties,
    uses the smaller variance that ties bring when some do, and keeps an honest width at the edges, where a bootstrap
    of all wins or of all ties would claim certainty.

    Raises ValueError without outcomes, for any other outcome, or a confidence outside (0, 1).
    """
    values = _outcomes(outcomes)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}")
    n = values.size
    wins, losses = int((values == 1).sum()), int((values == 0).sum())
    low, high = _tango_interval(wins, losses, n, z=float(norm.ppf((1 + confidence) / 2)))
    return Rate(value=float(values.mean()), low=(1 + low) / 2, high=(1 + high) / 2, n=n, ties=n - wins - losses)


def length_controlled_win_rate(
    outcomes: Sequence[float], left_lengths: Sequence[float], right_lengths: Sequence[float]
) -> float:
    """The win rate the left side would have if both answers were equally long (Dubois et al. 2024, eq. 2).

    Refits logit P(left wins) = quality + effect * tanh(d / sd(d)), d = left - right length, and returns
    sigmoid(quality), the prediction at d = 0. The paper's third term, the difficulty of each instruction, needs many
    models on the same instructions and is left out. Lengths may be in any one unit (tokens, words, characters).

    ``effect`` has a normal prior of mean 0 and standard deviation 2.5, the weakly informative one of Gelman et al.
    2008 in its Gaussian form, so that lengths that separate wins from losses give a finite fit. ``quality`` has none:
    where lengths are equal, or one side always wins, the result is the plain win rate. Swapping the sides gives
    1 minus the result.

    Raises ValueError for unequal numbers of outcomes and lengths, bad outcomes, or lengths not finite.
    """
    values = _outcomes(outcomes)
    differences = np.asarray(left_lengths, dtype=np.float64) - np.asarray(right_lengths, dtype=np.float64)
    if differences.shape != values.shape:
        raise ValueError(f"{values.size} outcomes need as many lengths on each side, not {differences.shape}")
    if not np.isfinite(differences).all():
        raise ValueError("lengths must be finite")
    spread = float(differences.std())
    plain = float(values.mean())
    if plain in (0.0, 1.0) or not differences.any():
        return plain
    # A constant difference has no spread, and tells no effect from quality: the prior alone decides between them.
    x = np.tanh(differences / spread) if spread > 0 else np.sign(differences)
    return float(expit(_fit_quality(values, x)))


def _outcomes(outcomes: Sequence[float]) -> Floats:
    values = np.asarray(outcomes, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError("a win rate needs at least one outcome")
    if not np.isin(values, (0.0, 0.5, 1.0)).all():
        raise ValueError("every outcome must be 1 (win), 0.5 (tie) or 0 (loss)")
    return values


def _tango_interval(wins: int, losses: int, n: int, *, z: float) -> tuple[float, float]:
    """The interval of P(win) - P(loss), in [-1, 1]."""
    estimate = (wins - losses) / n

    def excess(delta: float) -> float:
        """How far the squared score statistic at ``delta`` lies above z², times the variance (never a division)."""
        a, b, c = 2 * n, -wins - losses + (2 * n - wins + losses) * delta, -losses * delta * (1 - delta)
        loss_rate = (np.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
        variance = max(2 * loss_rate + delta - delta * delta, 0.0)
        return float((wins - losses - n * delta) ** 2 - z * z * n * variance)

    inside = 1e-9  # with ties only, the estimate itself is a root with no meaning: start just beside it
    low = -1.0 if losses == n else float(brentq(excess, -1.0, estimate - inside, xtol=1e-13))
    high = 1.0 if wins == n else float(brentq(excess, estimate + inside, 1.0, xtol=1e-13))
    return low, high


def _fit_quality(outcomes: Floats, x: Floats) -> float:
    design = np.stack([np.ones_like(x), x], axis=1)
    precision = np.array([0.0, LENGTH_EFFECT_SCALE**-2])

    def loss(beta: Floats) -> float:
        logits = design @ beta
        likelihood = outcomes * log_expit(logits) + (1 - outcomes) * log_expit(-logits)
        return float(-likelihood.sum() + 0.5 * (precision * beta**2).sum())

    def gradient(beta: Floats) -> Floats:
        return np.asarray(design.T @ (expit(design @ beta) - outcomes) + precision * beta, dtype=np.float64)

    def hessian(beta: Floats) -> Floats:
        p = expit(design @ beta)
        return np.asarray((design * (p * (1 - p))[:, None]).T @ design + np.diag(precision), dtype=np.float64)

    start = np.array([np.log(outcomes.mean() / (1 - outcomes.mean())), 0.0])
    result = minimize(loss, start, jac=gradient, hess=hessian, method="trust-exact", options={"gtol": 1e-9})
    return float(result.x[0])
