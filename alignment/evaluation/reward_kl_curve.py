"""Rewards against distance: the mathematics of the gold-reward experiment (Gao et al. 2022), without a model.

A policy that is trained on a proxy of what is wanted gains on the proxy as it moves; what is wanted rises with it, and
then falls. Distance is the square root of the KL from the start.
"""

from collections.abc import Sequence
from math import comb, log, sqrt

import numpy as np

from alignment.evaluation.bootstrap import Floats, Measure, difference, mean
from alignment.records import Record

ONE_SIDED = 0.975
DRAWS = 20_000  # behind a quantile of the largest t
NEAR = 3.0  # standard errors within which a point might as well be the best


class Point(Record):
    """A policy at one moment: its mean KL (nats an answer) from the start, and its rewards, over the same prompts.

    ``step`` is the step of its training, or the n of best-of-n. Rewards are in standard deviations of the start's own
    answers, 0 where the start is.
    """

    step: int
    kl: float
    proxy: Measure
    true: Measure


class Shape(Record):
    """How a policy's true reward went, in words and in figures.

    ``rise`` is its best point less the start, ``fall`` its last point less its best. The best point was chosen by the
    same answers that it is measured on, so both values are a little larger than they should be; the end of each
    interval that says whether there was a rise, or a fall, allows for it (see :func:`shape`). ``quality`` and ``decay``
    are the α and β of Gao et al. 2022: eq. 1, d (α - β log d), for trained policies, eq. 2, d (α - β d), for best-of-n,
    with d = √KL; None where there are fewer than three points. A positive ``decay`` is over-optimisation.
    """

    words: str
    best_step: int
    best_kl: float
    rise: Measure
    fall: Measure
    proxy_rise: Measure
    quality: float | None
    decay: float | None


def best_of_weights(draws: int, n: int) -> list[float]:
    """The chance of each of ``draws`` answers, worst first, to be the best of ``n`` drawn without replacement.

    With them a mean over all draws estimates best-of-n without bias, for every n from the same draws (Nakano et al.
    2021, appendix I). Raises ValueError unless 1 <= n <= draws.
    """
    if not 1 <= n <= draws:
        raise ValueError(f"the best of {n} cannot be told from {draws} answers")
    whole = comb(draws, n)
    return [comb(rank, n - 1) / whole for rank in range(draws)]


def best_of_mean(proxy: Sequence[float], values: Sequence[float], n: int) -> float:
    """What ``values`` are, on average, of the answer with the highest ``proxy`` among ``n`` of those given."""
    order = sorted(range(len(proxy)), key=lambda place: (proxy[place], place))
    return sum(weight * values[place] for weight, place in zip(best_of_weights(len(proxy), n), order, strict=True))


def best_of_kl(n: int) -> float:
    """An upper bound of the KL of best-of-n from the policy it draws from, in nats (Beirami et al. 2024)."""
    return log(n) - (n - 1) / n


def powers_of_two(most: int) -> list[int]:
    """1, 2, 4 … as far as ``most``, and ``most`` itself."""
    powers = [2**power for power in range(most.bit_length()) if 2**power <= most]
    return powers if powers[-1] == most else [*powers, most]


def shape(
    steps: Sequence[int],
    kl: Sequence[float],
    true: Sequence[Sequence[float]],
    proxy: Sequence[Sequence[float]],
    *,
    trained: bool,
) -> Shape:
    """The shape of one policy's way: at each of its points the KL, and per prompt the true and the proxy reward.

    Rewards are differences from the start's. ``trained`` is False for best-of-n.

    Of flat points the best one always seems to have risen, and the last to have fallen from it. So ``rise.low`` and
    ``fall.high`` are moved out as the largest of several correlated t statistics asks: one for each point that might as
    well be the best (Hothorn, Bretz and Westfall 2008). A rise or a fall that is not there is claimed in 2.5 % of cases
    each, however many points there are. Raises ValueError without points.
    """
    if not steps:
        raise ValueError("a shape needs at least one point")
    rewards = np.array(true, dtype=np.float64)
    means = rewards.mean(axis=1).tolist()
    best = max(range(len(steps)), key=lambda place: means[place])
    contenders = _contenders(rewards, best)
    rise, proxy_rise = mean(true[best]), mean(proxy[-1])
    rise = rise.model_copy(update={"low": min(rise.low, rise.value - _reach(rewards[contenders], rewards[best]))})
    last = difference(true[-1], true[best])
    reach = _reach(rewards[-1] - rewards[contenders], rewards[-1] - rewards[best])
    fall = Measure(value=last.value, low=last.low, high=max(last.high, last.value + reach), n=last.n)
    quality, decay = fit(kl, means, trained=trained)
    return Shape(words=_words(rise, fall, proxy_rise), best_step=steps[best], best_kl=kl[best], rise=rise, fall=fall,
                 proxy_rise=proxy_rise, quality=quality, decay=decay)  # fmt: skip


def _contenders(rewards: Floats, best: int) -> list[int]:
    """The points that might be the best: those within ``NEAR`` standard errors of it, itself among them."""
    apart = rewards[best] - rewards
    return [place for place in range(len(rewards)) if apart[place].mean() <= NEAR * _error(apart[place])]


def _reach(contenders: Floats, chosen: Floats) -> float:
    """How far from its mean the one-sided 97.5 % bound of ``chosen`` (N,) lies, which was chosen among ``contenders``
    (S, N): its standard error times the quantile of the largest of their t statistics."""
    varied = contenders[contenders.std(axis=1) > 0]
    n = chosen.size
    if n < 2 or len(varied) < 2:  # with one there was no choice: the interval stands as it is
        return 0.0
    rng = np.random.default_rng(0)
    _root, triangle = np.linalg.qr(((varied - varied.mean(axis=1, keepdims=True)) / varied.std(axis=1)[:, None]).T)
    normal = rng.standard_normal((DRAWS, len(triangle))) @ triangle / sqrt(n)  # with the points' correlations
    spread = np.sqrt(rng.chisquare(n - 1, size=DRAWS) / (n - 1))
    return float(np.quantile(normal.max(axis=1) / spread, ONE_SIDED)) * _error(chosen)


def _error(values: Floats) -> float:
    """The standard error of a mean."""
    return float(values.std(ddof=1)) / sqrt(values.size) if values.size > 1 else 0.0


def fit(kl: Sequence[float], rewards: Sequence[float], *, trained: bool) -> tuple[float | None, float | None]:
    """α and β of Gao et al. 2022 by least squares over the points that have moved; None for fewer than three."""
    moved = [(sqrt(value), reward) for value, reward in zip(kl, rewards, strict=True) if value > 0]
    if len(moved) < 3:
        return None, None
    d, y = np.array(moved).T
    design = np.stack([d, -d * (np.log(d) if trained else d)], axis=1)
    (quality, decay), *_ = np.linalg.lstsq(design, y, rcond=None)
    return float(quality), float(decay)


def _words(rise: Measure, fall: Measure, proxy_rise: Measure) -> str:
    """What the intervals allow to be said, and no more."""
    rose, fell = rise.low > 0, fall.high < 0
    if rose and fell:
        return "rose, then fell"
    if rose:
        return "rose, and no fall shows"
    if fell:
        return "fell without having risen"
    if proxy_rise.low > 0:
        return "did not follow the proxy, which rose"
    return "no change shows, nor does the proxy's"
