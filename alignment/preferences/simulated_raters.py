"""Raters that are programs. People vote in the browser; whatever votes here says so in ``rater_kind``."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Protocol

from alignment.digests import content_id
from alignment.preferences.rubric import Rubric, score
from alignment.recipe.raters import SimulatedRaters
from alignment.records import Comparison, Outcome, RaterKind, Vote


class Rater(Protocol):
    """Whoever compares answers: one vote for each comparison, in the same order."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> RaterKind: ...

    def rate(self, comparisons: Sequence[Comparison]) -> list[Vote]: ...


@dataclass(frozen=True, slots=True)
class SimulatedRater:
    """Follows a rubric, imperfectly: its score of an answer is the rubric's plus Gaussian noise of its own.

    The noise (standard deviation ``noise``, in points) hangs on the seed, the rater and the response alone, so a vote
    is the same in any order or batch, and a rater is consistent about an answer that it sees twice. Answers of the
    same text get the same score. Two scores nearer than ``tie_margin`` are a tie; where no answer reaches the
    rubric's ``both_bad_below``, the vote says so and ranks nothing.
    """

    name: str
    rubric: Rubric
    noise: float
    tie_margin: float
    seed: int
    kind: RaterKind = "simulated"

    def rate(self, comparisons: Sequence[Comparison]) -> list[Vote]:
        return [self._vote(comparison) for comparison in comparisons]

    def scores(self, comparison: Comparison) -> dict[str, float]:
        """This rater's score of every answer, by response id, in points."""
        by_text: dict[str, float] = {}
        for response in sorted(comparison.responses, key=lambda response: response.id):
            if response.text.strip() not in by_text:
                true = score(self.rubric, comparison.prompt, response).total
                by_text[response.text.strip()] = true + self.noise * self._gaussian(response.id)
        return {response.id: by_text[response.text.strip()] for response in comparison.responses}

    def _gaussian(self, response_id: str) -> float:
        digest = hashlib.sha256(f"{self.seed}\0{self.name}\0{response_id}".encode()).digest()
        uniform = ((int.from_bytes(digest[:8], "big") >> 11) + 0.5) / 2**53  # within (0, 1), both ends left out
        return NormalDist().inv_cdf(uniform)

    def _vote(self, comparison: Comparison) -> Vote:
        scores = self.scores(comparison)
        identical = len({response.text.strip() for response in comparison.responses}) == 1
        outcome: Outcome = "ranked"
        if not identical and max(scores.values()) < self.rubric.both_bad_below:
            outcome = "both_bad"
        ranking = _ranking(scores, self.tie_margin) if outcome == "ranked" else ()
        strength = self._strength(scores, ranking) if outcome == "ranked" and len(scores) == 2 else None
        content = ["vote", comparison.id, self.name, outcome, ranking, strength]
        return Vote(
            id=content_id(content),
            comparison_id=comparison.id,
            rater=self.name,
            rater_kind=self.kind,
            outcome=outcome,
            ranking=ranking,
            strength=strength,
        )

    def _strength(self, scores: dict[str, float], ranking: tuple[tuple[str, ...], ...]) -> int:
        if len(ranking) == 1:
            return 0
        gap = max(scores.values()) - min(scores.values())
        return 1 + (gap >= self.rubric.clearly_better) + (gap >= self.rubric.much_better)


def simulated_raters(settings: SimulatedRaters, rubric: Rubric, seed: int) -> list[SimulatedRater]:
    """The raters that a recipe asks for, named "simulated-1", "simulated-2" …, each with noise of its own."""
    return [
        SimulatedRater(f"simulated-{i}", rubric, settings.noise, settings.tie_margin, seed)
        for i in range(1, settings.count + 1)
    ]


def _ranking(scores: dict[str, float], tie_margin: float) -> tuple[tuple[str, ...], ...]:
    """Response ids, best first. A group holds those that tie with its best: ties do not chain."""
    groups: list[list[str]] = []
    for response in sorted(scores, key=lambda response: (-scores[response], response)):
        gap = scores[groups[-1][0]] - scores[response] if groups else None
        if gap is not None and (gap == 0 or gap < tie_margin):
            groups[-1].append(response)
        else:
            groups.append([response])
    return tuple(tuple(sorted(group)) for group in groups)
