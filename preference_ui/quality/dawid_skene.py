"""Which answer is better, when raters differ in how often they are right (Dawid and Skene 1979).

Each rater has a confusion matrix: how often they say j where i is true. The truth and the matrices are estimated in
turns (EM), started at the majority. It leaves out priors beyond one pseudo-count, so it wants enough votes; see
:func:`has_enough`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ratings = Sequence[Mapping[str, int]]  # one mapping a unit: rater → category


def has_enough(ratings: Ratings) -> bool:
    """Whether matrices can be told from noise: 50 units rated twice, and three raters with 20 votes each."""
    votes: dict[str, int] = {}
    for unit in ratings:
        for rater in unit:
            votes[rater] = votes.get(rater, 0) + 1
    return sum(len(unit) >= 2 for unit in ratings) >= 50 and sum(count >= 20 for count in votes.values()) >= 3


def dawid_skene(ratings: Ratings, categories: int, *, iterations: int = 50) -> Floats:
    """The probability of each category for each unit: (units, ``categories``), rows sum to 1.

    ``ratings`` hold category numbers from 0. A unit nobody rated gets the prior.
    """
    raters = sorted({rater for unit in ratings for rater in unit})
    said = np.zeros((len(ratings), len(raters), categories))  # one-hot
    for at, unit in enumerate(ratings):
        for rater, category in unit.items():
            said[at, raters.index(rater), category] = 1.0
    majority = said.sum(axis=1) + 1e-9
    truth: Floats = majority / majority.sum(axis=1, keepdims=True)
    for _ in range(iterations):
        prior = truth.mean(axis=0)
        confusion = np.einsum("ui,urj->rij", truth, said) + 1.0 / categories  # one pseudo-count a row
        confusion /= confusion.sum(axis=2, keepdims=True)
        likelihood = np.log(prior + 1e-12) + np.einsum("urj,rij->ui", said, np.log(confusion))
        updated: Floats = np.exp(likelihood - likelihood.max(axis=1, keepdims=True))
        updated /= updated.sum(axis=1, keepdims=True)
        if np.abs(updated - truth).max() < 1e-6:
            return updated
        truth = updated
    return truth
