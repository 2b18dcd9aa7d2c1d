"""Who answered better: outcomes of pairs, 1 where the left answer is better, 0.5 for a tie, 0 where the right is."""

from collections.abc import Sequence

from alignment.digests import content_id
from alignment.preferences.consensus import consensus
from alignment.preferences.simulated_raters import Rater
from alignment.records import Comparison, Prompt, Response

TIE = 0.5


def rubric_outcomes(
    prompts: Sequence[Prompt], left: Sequence[Response], right: Sequence[Response], raters: Sequence[Rater]
) -> list[float]:
    """One outcome for each prompt by the raters' majority; level votes are a tie, and so are equal texts."""
    comparisons = {
        i: _comparison(prompt, a, b)
        for i, (prompt, a, b) in enumerate(zip(prompts, left, right, strict=True))
        if not _same(a, b)
    }
    asked = list(comparisons.values())
    votes = [vote for rater in raters for vote in rater.rate(asked)]
    outcomes = [TIE] * len(prompts)
    for i, verdict in zip(comparisons, consensus(asked, votes), strict=True):
        if verdict.winner is not None:
            outcomes[i] = float(verdict.winner == left[i].id)
    return outcomes


def score_outcomes(
    left: Sequence[Response], right: Sequence[Response], left_scores: Sequence[float], right_scores: Sequence[float]
) -> list[float]:
    """One outcome for each pair: the higher score is better; equal scores are a tie, and so are equal texts."""
    pairs = zip(left, right, left_scores, right_scores, strict=True)
    return [TIE if _same(a, b) or p == q else float(p > q) for a, b, p, q in pairs]


def _same(left: Response, right: Response) -> bool:
    return left.text.strip() == right.text.strip()


def _comparison(prompt: Prompt, left: Response, right: Response) -> Comparison:
    return Comparison(
        id=content_id(["evaluation", prompt.id, left.id, right.id]), prompt=prompt, responses=(left, right)
    )
