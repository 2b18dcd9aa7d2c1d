"""Rewards against distance: the mathematics of the gold-reward experiment (Gao et al. 2022), without a model.

A policy that is trained on a proxy of what is wanted gains on the proxy as it moves; what is wanted rises with it, and
then falls. Distance is the square root of the KL from the start.
"""

from collections.abc import Sequence
from math import comb, log, sqrt

import numpy as np

from alignment.evaluation.bootstrap import Measure, difference, mean
from alignment.records import Record


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
    same answers that it is measured on, so both are a little larger than they should be. ``quality`` and ``decay`` are
    the α and β of Gao et al. 2022: eq. 1, d (α - β log d), for trained policies, eq. 2, d (α - β d), for best-of-n,
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

    Rewards are differences from the start's. ``trained`` is False for best-of-n. Raises ValueError without points.
    """
    if not steps:
        raise ValueError("a shape needs at least one point")
    means = [float(np.mean(values)) for values in true]
    best = max(range(len(steps)), key=lambda place: means[place])
    rise, proxy_rise = mean(true[best]), mean(proxy[-1])
    last = difference(true[-1], true[best])
    fall = Measure(value=last.value, low=last.low, high=last.high, n=last.n)
    quality, decay = fit(kl, means, trained=trained)
    return Shape(words=_words(rise, fall, proxy_rise), best_step=steps[best], best_kl=kl[best], rise=rise, fall=fall,
                 proxy_rise=proxy_rise, quality=quality, decay=decay)  # fmt: skip


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
