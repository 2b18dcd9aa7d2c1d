"""Votes → consensus → pairs to train on. Verdicts keep everything that raters said; only wins are trained on."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from math import log
from typing import Literal

from pydantic import Field

from alignment.digests import content_id, pair_id
from alignment.records import ALONE, Comparison, PreferencePair, RaterKind, Record, Response, Vote

LEVEL = log(2)  # log-odds up to which votes that are level by heads stay so
Choice = Literal["left", "right", "tie", "both_bad", "skipped", "flagged"]


class Verdict(Record):
    """What the raters of a comparison say about two of its answers (a comparison of K answers has K(K-1)/2 of them).

    ``agreement`` is the share of the votes that went the winner's way, of all that judged: skips do not count, ties,
    "both bad" and flags do. ``strength`` is the mean signed strength over the votes that gave one: 1 to 3 toward the
    left answer, 0 for a tie, -1 to -3 toward the right one; None where no vote gave one.
    """

    comparison_id: str
    left: str  # response ids
    right: str
    votes: int = Field(ge=0)  # that judged: all but skips
    left_votes: int = Field(ge=0)
    right_votes: int = Field(ge=0)
    ties: int = Field(ge=0)
    both_bad: int = Field(ge=0)
    skips: int = Field(ge=0)
    flagged: int = Field(ge=0)
    winner: str | None = None  # by plurality of left against right; None where they are level
    agreement: float | None = None
    strength: float | None = None
    rater_kind: RaterKind | None = None  # the least human of those who judged; None where nobody did


def current_votes(votes: Iterable[Vote]) -> list[Vote]:
    """The votes in their newest version: without repeats, and without those that their own rater has superseded."""
    by_id = {vote.id: vote for vote in votes}
    replaced = {
        vote.supersedes
        for vote in by_id.values()
        if vote.supersedes in by_id
        and (vote.rater, vote.comparison_id) == (by_id[vote.supersedes].rater, by_id[vote.supersedes].comparison_id)
    }
    return [vote for vote in by_id.values() if vote.id not in replaced]


def consensus(
    comparisons: Sequence[Comparison],
    votes: Iterable[Vote],
    weights: Mapping[RaterKind, float] | None = None,
    *,
    skill: Mapping[str, Mapping[str, float]] | None = None,
) -> list[Verdict]:
    """One verdict for every pair of answers in every comparison, in the order of ``comparisons``.

    ``weights`` says what a vote counts by the kind of its rater (None: all count 1): winner, agreement and strength
    are by weight, and who weighs nothing does not take part. ``skill`` says it by comparison and rater, in log-odds
    (:func:`~alignment.preferences.dawid_skene.rater_skill`), beside it; there votes that are level by heads have a
    winner only where the better raters make it twice as likely as the other.

    A comparison without votes has a verdict with no winner. Raises ValueError for a vote on an unknown comparison or
    one whose ranking does not hold exactly the comparison's answers.
    """
    cast = _votes_by_comparison(comparisons, votes)
    return [
        _verdict(
            comparison.id,
            left.id,
            right.id,
            cast[comparison.id],
            weights,
            None if skill is None else skill.get(comparison.id, {}),
        )
        for comparison in comparisons
        for left, right in combinations(comparison.responses, 2)
    ]


def preference_pairs(
    verdicts: Sequence[Verdict], comparisons: Sequence[Comparison], min_agreement: float
) -> list[PreferencePair]:
    """The verdicts to train on: those with a winner, on which at least ``min_agreement`` of the votes agree.

    A pair's ``margin`` is the mean signed strength toward its winner, None where no vote gave one. A verdict whose
    strength does not favour its winner (two slightly for, one strongly against) is no ground to train on and left out.
    """
    by_id = {comparison.id: comparison for comparison in comparisons}
    pairs = []
    for verdict in verdicts:
        if verdict.winner is None or verdict.agreement is None or verdict.agreement < min_agreement:
            continue
        margin = verdict.strength
        if margin is not None and verdict.winner == verdict.right:
            margin = -margin
        if margin is None or margin > 0:
            pairs.append(_pair(by_id[verdict.comparison_id], verdict, margin))
    return [pair for pair in pairs if pair.chosen != pair.rejected]


def rating_table(comparisons: Sequence[Comparison], votes: Iterable[Vote]) -> dict[str, list[Choice | None]]:
    """What each rater said of each verdict's pair, in the order of :func:`consensus`: rows for agreement statistics.

    "left" is here one of the two answers by the digest of its text (:func:`oriented`), wherever it stands: nothing that
    the statistics say depends on which answer was written first in a file. (α and κ take the shares of "left" and
    "right" for what chance gives: with every chosen answer on the left there would be nothing left to agree on.)

    Skips and flags are no ratings of the answers, and None, as is a vote never cast. Where a rater has several current
    votes on one comparison, the newest counts.
    """
    cast = _votes_by_comparison(comparisons, votes)
    raters = sorted({vote.rater for group in cast.values() for vote in group})
    table: dict[str, list[Choice | None]] = {rater: [] for rater in raters}
    for comparison in comparisons:
        by_rater = {vote.rater: vote for vote in sorted(cast[comparison.id], key=vote_age)}
        for pair in combinations(comparison.responses, 2):
            left, right = (response.id for response in oriented(pair))
            for rater in raters:
                choice = _choice(by_rater[rater], left, right) if rater in by_rater else None
                table[rater].append(None if choice in ("skipped", "flagged") else choice)
    return table


def oriented(pair: Iterable[Response]) -> list[Response]:
    """Answers in an order that follows from their texts and says nothing about them: by digest."""
    return sorted(pair, key=lambda response: (content_id(["side", response.text]), response.id))


def vote_age(vote: Vote) -> tuple[float, str]:
    """Oldest first; votes without a time are older than all that have one."""
    return (vote.created.timestamp() if vote.created else float("-inf"), vote.id)


def _votes_by_comparison(comparisons: Sequence[Comparison], votes: Iterable[Vote]) -> dict[str, list[Vote]]:
    answers = {comparison.id: {r.id for r in comparison.responses} for comparison in comparisons}
    cast: dict[str, list[Vote]] = defaultdict(list)
    for vote in current_votes(votes):
        if vote.comparison_id not in answers:
            raise ValueError(f"vote {vote.id} is on the unknown comparison {vote.comparison_id}")
        ranked = {response for group in vote.ranking for response in group}
        if vote.outcome == "ranked" and ranked != answers[vote.comparison_id]:
            raise ValueError(f"vote {vote.id} does not rank the answers of comparison {vote.comparison_id}")
        if vote.outcome in ALONE and len(answers[vote.comparison_id]) > 1:
            raise ValueError(f"vote {vote.id} is on one answer, and comparison {vote.comparison_id} has several")
        cast[vote.comparison_id].append(vote)
    return cast


def _choice(vote: Vote, left: str, right: str) -> Choice:
    if vote.outcome == "both_bad" or vote.outcome == "skipped" or vote.outcome == "flagged":
        return vote.outcome
    if vote.outcome != "ranked":
        raise ValueError(f"vote {vote.id} is on one answer, and not on two")
    place = {response: i for i, group in enumerate(vote.ranking) for response in group}
    if place[left] == place[right]:
        return "tie"
    return "left" if place[left] < place[right] else "right"


def _verdict(
    comparison_id: str,
    left: str,
    right: str,
    votes: Sequence[Vote],
    weights: Mapping[RaterKind, float] | None,
    skill: Mapping[str, float] | None,
) -> Verdict:
    by_kind = {kind: 1.0 if weights is None else weights.get(kind, 0.0) for kind in ("human", "simulated", "judge")}
    votes = [vote for vote in votes if by_kind[vote.rater_kind] > 0]
    weigh = [by_kind[vote.rater_kind] * (1.0 if skill is None else skill.get(vote.rater, 0.0)) for vote in votes]
    choices = [_choice(vote, left, right) for vote in votes]
    counts = Counter(choices)
    judged = len(votes) - counts["skipped"]
    heavy: dict[Choice, float] = defaultdict(float)
    for weight, choice in zip(weigh, choices, strict=True):
        heavy[choice] += weight
    total = sum(heavy.values()) - heavy["skipped"]
    winner = None
    apart = abs(heavy["left"] - heavy["right"])
    if apart > 0 and (skill is None or counts["left"] != counts["right"] or apart >= LEVEL):
        winner = left if heavy["left"] > heavy["right"] else right
    sign = {"left": 1, "right": -1, "tie": 0}
    known = [
        (weight, sign[choice] * vote.strength)
        for weight, vote, choice in zip(weigh, votes, choices, strict=True)
        if choice in sign and vote.strength is not None and weight > 0
    ]
    kinds = {vote.rater_kind for vote in votes if vote.outcome != "skipped"}
    least_human: tuple[RaterKind, ...] = ("simulated", "judge", "human")
    return Verdict(
        comparison_id=comparison_id,
        left=left,
        right=right,
        votes=judged,
        left_votes=counts["left"],
        right_votes=counts["right"],
        ties=counts["tie"],
        both_bad=counts["both_bad"],
        skips=counts["skipped"],
        flagged=counts["flagged"],
        winner=winner,
        agreement=max(heavy["left"], heavy["right"]) / total if winner else None,
        strength=sum(w * value for w, value in known) / sum(w for w, _value in known) if known else None,
        rater_kind=next((kind for kind in least_human if kind in kinds), None),
    )


def _pair(comparison: Comparison, verdict: Verdict, margin: float | None) -> PreferencePair:
    texts: dict[str, Response] = {response.id: response for response in comparison.responses}
    rejected = verdict.left if verdict.winner == verdict.right else verdict.right
    better, worse = texts[verdict.winner or ""], texts[rejected]
    return PreferencePair(
        id=pair_id(comparison.prompt.messages, better.text, worse.text),
        prompt_id=comparison.prompt.id,
        prompt=comparison.prompt.messages,
        chosen=better.text,
        rejected=worse.text,
        chosen_finished=better.finished,
        rejected_finished=worse.finished,
        margin=margin,
        raters=verdict.votes,
        agreement=verdict.agreement,
        rater_kind=verdict.rater_kind or "file",
        kind=comparison.prompt.kind,
    )
