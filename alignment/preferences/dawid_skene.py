"""Which answer is better, when raters differ in how often they are right (Dawid and Skene 1979).

Each rater has a confusion matrix: how often they say j where i is true. The truth and the matrices are estimated in
turns (EM), started at the majority. It leaves out priors beyond one pseudo-count, so it wants enough votes; see
:func:`has_enough`.

What a vote is worth for one answer against the other is then a log-odds: how much likelier the rater says so where it
is true than where the opposite is. It is estimated on other prompts than those it is used on: a rater who decided what
passes for the truth would look better than they are.
"""

from collections.abc import Hashable, Mapping, Sequence
from statistics import median

import numpy as np
import numpy.typing as npt

from alignment.digests import content_id
from alignment.preferences.consensus import rating_table
from alignment.preferences.vote_agreement import verdict_prompts
from alignment.records import Comparison, Vote

Floats = npt.NDArray[np.float64]
Ratings = Sequence[Mapping[str, int]]  # one mapping a unit: rater → category
Skill = dict[str, dict[str, float]]  # comparison → rater → what their vote weighs there
SECOND, TIE, FIRST = range(3)  # categories of a pair: which answer is better
FOLDS = 5


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
    return _estimate(ratings, sorted({rater for unit in ratings for rater in unit}), categories, iterations)[0]


def _estimate(ratings: Ratings, raters: Sequence[str], categories: int, iterations: int = 50) -> tuple[Floats, Floats]:
    """The truth, (units, categories), and each rater's confusion matrix, (raters, true, said)."""
    place = {rater: at for at, rater in enumerate(raters)}
    said = np.zeros((len(ratings), len(raters), categories))  # one-hot
    for at, unit in enumerate(ratings):
        for rater, category in unit.items():
            said[at, place[rater], category] = 1.0
    majority = said.sum(axis=1) + 1e-9
    truth: Floats = majority / majority.sum(axis=1, keepdims=True)
    confusion = _confusion(truth, said)
    for _ in range(iterations):
        prior = truth.mean(axis=0)
        likelihood = np.log(prior + 1e-12) + np.einsum("urj,rij->ui", said, np.log(confusion))
        updated: Floats = np.exp(likelihood - likelihood.max(axis=1, keepdims=True))
        updated /= updated.sum(axis=1, keepdims=True)
        moved = float(np.abs(updated - truth).max(initial=0.0))
        truth = updated
        confusion = _confusion(truth, said)
        if moved < 1e-6:
            break
    return truth, confusion


def _confusion(truth: Floats, said: Floats) -> Floats:
    counts = np.einsum("ui,urj->rij", truth, said) + 1.0 / truth.shape[1]  # one pseudo-count a row
    return np.asarray(counts / counts.sum(axis=2, keepdims=True), dtype=np.float64)


def log_odds(ratings: Ratings, groups: Sequence[Hashable]) -> list[dict[str, float]]:
    """For each unit what each rater's vote weighs on it, cross-fitted: one mapping a unit, rater → log-odds ≥ 0.

    ``ratings`` are of pairs, in the categories ``SECOND``, ``TIE`` and ``FIRST``; ``groups`` says what each unit hangs
    on, its prompt: a fold holds whole groups. Which answer is the first says nothing, so every unit counts both ways
    round, and a rater's matrix is symmetric: a vote for an answer adds log P(said | it is better) - log P(said | the
    other is), a tie adds nothing to either. Whoever is right no more often than by chance weighs 0; who has no vote in
    the other folds weighs what the median rater does.
    """
    raters = sorted({rater for unit in ratings for rater in unit})
    fold = [int(content_id(["fold", str(group)]), 16) % FOLDS for group in groups]
    weights: dict[int, dict[str, float]] = {}
    for held in set(fold):
        others = [unit for unit, own in zip(ratings, fold, strict=True) if own != held]
        both = [*others, *({rater: FIRST - said for rater, said in unit.items()} for unit in others)]
        _truth, confusion = _estimate(both, raters, 3)
        voted = {rater for unit in others for rater in unit}
        found = {
            rater: max(0.0, float(np.log(matrix[FIRST, FIRST] / matrix[FIRST, SECOND])))
            for rater, matrix in zip(raters, confusion, strict=True)
        }
        usual = median(found[rater] for rater in voted) if voted else 1.0
        weights[held] = {rater: found[rater] if rater in voted else usual for rater in raters}
    return [weights[own] for own in fold]


def rater_skill(comparisons: Sequence[Comparison], votes: Sequence[Vote]) -> Skill | None:
    """What each rater's vote weighs on each comparison; None where there are too few votes to tell.

    Then, and where all are equally good, a consensus is a majority.
    """
    category = {"left": FIRST, "right": SECOND, "tie": TIE}
    table = rating_table(comparisons, votes)
    columns = zip(*table.values(), strict=True) if table else ()
    ratings = [
        {rater: category[choice] for rater, choice in zip(table, column, strict=True) if choice in category}
        for column in columns
    ]
    if not has_enough(ratings):
        return None
    weights = log_odds(ratings, verdict_prompts(comparisons))
    by_comparison: Skill = {}
    place = 0
    for comparison in comparisons:
        by_comparison[comparison.id] = weights[place]
        place += len(comparison.responses) * (len(comparison.responses) - 1) // 2
    return by_comparison
