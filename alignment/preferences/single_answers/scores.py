"""Single answers that people scored by criteria, 1 (poor) to 5 (excellent)."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean

from pydantic import Field

from alignment.preferences.consensus import current_votes
from alignment.records import Comparison, Message, Record, Vote


class ScoredAnswer(Record):
    """An answer with the mean of its raters' scores by every criterion."""

    id: str  # the comparison's
    prompt: tuple[Message, ...] = Field(min_length=1)
    completion: str
    scores: dict[str, float] = Field(min_length=1)
    raters: int = Field(ge=1)
    finished: bool = True
    kind: str = "general"  # of its prompt


def scored_answers(comparisons: Sequence[Comparison], votes: Iterable[Vote]) -> list[ScoredAnswer]:
    """The single answers that somebody scored, in the order of ``comparisons``."""
    given: dict[str, list[Vote]] = defaultdict(list)
    for vote in current_votes(votes):
        if vote.outcome == "scored":
            given[vote.comparison_id].append(vote)
    return [_scored(one, given[one.id]) for one in comparisons if len(one.responses) == 1 and given[one.id]]


def _scored(comparison: Comparison, votes: Sequence[Vote]) -> ScoredAnswer:
    answer = comparison.responses[0]
    by_name: dict[str, list[int]] = defaultdict(list)
    for vote in votes:
        for name, score in vote.criteria.items():
            criterion, _, response = name.partition(":")
            if response == answer.id:
                by_name[criterion].append(score)
    return ScoredAnswer(
        id=comparison.id,
        prompt=comparison.prompt.messages,
        completion=answer.text,
        scores={name: fmean(by_name[name]) for name in sorted(by_name)},
        raters=len({vote.rater for vote in votes}),
        finished=answer.finished,
        kind=comparison.prompt.kind,
    )
