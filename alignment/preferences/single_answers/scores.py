"""Single answers that people scored by criteria, 1 (poor) to 5 (excellent)."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import permutations
from statistics import fmean

from pydantic import Field

from alignment.digests import pair_id
from alignment.preferences.consensus import current_votes
from alignment.records import Comparison, Message, PreferencePair, Record, Vote


class ScoredAnswer(Record):
    """An answer with the mean of its raters' scores by every criterion."""

    id: str  # the comparison's
    prompt_id: str
    prompt: tuple[Message, ...] = Field(min_length=1)
    completion: str
    scores: dict[str, float] = Field(min_length=1)
    raters: int = Field(ge=1)
    finished: bool = True
    kind: str = "general"  # of its prompt

    def score(self) -> float:
        """The mean over its criteria."""
        return fmean(self.scores.values())


def scored_answers(comparisons: Sequence[Comparison], votes: Iterable[Vote]) -> list[ScoredAnswer]:
    """The single answers that somebody scored, in the order of ``comparisons``."""
    given: dict[str, list[Vote]] = defaultdict(list)
    for vote in current_votes(votes):
        if vote.outcome == "scored":
            given[vote.comparison_id].append(vote)
    return [_scored(one, given[one.id]) for one in comparisons if len(one.responses) == 1 and given[one.id]]


def score_pairs(answers: Sequence[ScoredAnswer]) -> list[PreferencePair]:
    """Every two answers to one prompt of which one has the higher score, the mean over criteria; the difference, in
    points, is the pair's margin. In the order of the ids."""
    by_prompt: dict[str, list[ScoredAnswer]] = defaultdict(list)
    for answer in answers:
        by_prompt[answer.prompt_id].append(answer)
    pairs = [
        _pair(one, other)
        for group in by_prompt.values()
        for one, other in permutations(group, 2)
        if one.score() > other.score() and one.completion != other.completion
    ]
    by_id = {pair.id: pair for pair in pairs}
    return [by_id[name] for name in sorted(by_id)]


def _pair(better: ScoredAnswer, worse: ScoredAnswer) -> PreferencePair:
    return PreferencePair(
        id=pair_id(better.prompt, better.completion, worse.completion),
        prompt_id=better.prompt_id,
        prompt=better.prompt,
        chosen=better.completion,
        rejected=worse.completion,
        chosen_finished=better.finished,
        rejected_finished=worse.finished,
        margin=better.score() - worse.score(),
        raters=min(better.raters, worse.raters),
        rater_kind="human",
        kind=better.kind,
    )


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
        prompt_id=comparison.prompt.id,
        prompt=comparison.prompt.messages,
        completion=answer.text,
        scores={name: fmean(by_name[name]) for name in sorted(by_name)},
        raters=len({vote.rater for vote in votes}),
        finished=answer.finished,
        kind=comparison.prompt.kind,
    )
