"""How good the votes are: every rater against gold, against themselves, against the others; and all raters together."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import median
from typing import Any

from pydantic import BaseModel
from scipy.stats import binomtest
from sqlalchemy import Connection, Row, select

from alignment.preferences.vote_agreement import Agreement, agreement_figures
from alignment.records import Comparison, Vote
from preference_ui.labelling.ballots import Ballot, read_ballots
from preference_ui.quality.dawid_skene import dawid_skene, has_enough
from preference_ui.store.schema import accounts, comparisons
from preference_ui.store.store import Store

FAST_SECONDS = 3.0  # nobody reads two answers in less
_BOOTSTRAP = 200


class Share(BaseModel):
    """``hits`` of ``of``, with the 95 % Wilson interval; no value where there is nothing to divide."""

    hits: float
    of: int
    value: float | None
    low: float | None
    high: float | None


class RaterQuality(BaseModel):
    """What is known about one rater. Agreement is with what the others say (their own votes left out)."""

    account: str
    name: str
    state: str
    votes: int
    excluded: int
    median_seconds: float | None
    fast: Share
    gold: Share
    consistency: Share
    agreement: Share
    first_shown: Share  # how often the answer shown first won: half, for who reads both


class QualityReport(BaseModel):
    """Every rater, and how far all agree. ``consensus`` says how "what the others say" was found."""

    votes: int
    comparisons: int
    consensus: str
    raters: list[RaterQuality]
    agreement: list[Agreement]


def quality_report(store: Store) -> QualityReport:
    """The figures on every standing vote. Excluded votes are counted but enter no figure of the others."""
    with store.read() as connection:
        people = connection.execute(select(accounts).order_by(accounts.c.name)).all()
        ballots = read_ballots(connection)
        items, expected = _items(connection, {one.vote.comparison_id for one in ballots})
    counted = [one for one in ballots if not one.excluded]
    work = [one for one in counted if one.purpose == "work"]
    agreement = agreement_figures(
        [items[name] for name in sorted({one.vote.comparison_id for one in work})],
        [one.vote for one in work],
        bootstrap=_BOOTSTRAP,
    )
    against, method = _against_the_others(work)
    raters = [
        _rater(person, [one for one in ballots if one.account == person.id], expected, against)
        for person in people
        if person.role == "rater" or any(one.account == person.id for one in ballots)
    ]
    return QualityReport(
        votes=len(work),
        comparisons=len({one.vote.comparison_id for one in work}),
        consensus=method,
        raters=raters,
        agreement=agreement,
    )


def _items(connection: Connection, names: set[str]) -> tuple[dict[str, Comparison], dict[str, Any]]:
    columns = (comparisons.c.id, comparisons.c.prompt, comparisons.c.responses, comparisons.c.expected)
    items, expected = {}, {}
    for row in connection.execute(select(*columns)):
        if row.id in names:
            fields = {"id": row.id, "prompt": row.prompt, "responses": row.responses}
            items[row.id] = Comparison.model_validate(fields)
            expected[row.id] = row.expected
    return items, expected


def _rater(
    person: Row[Any], ballots: Sequence[Ballot], expected: Mapping[str, Any], against: Mapping[str, tuple[float, int]]
) -> RaterQuality:
    gold = [
        _likeness(_signs(one.vote), _ranking_signs(expected[one.vote.comparison_id]["ranking"]))
        for one in ballots
        if one.purpose == "gold" and one.vote.outcome != "skipped"
    ]
    first = {one.vote.comparison_id: _signs(one.vote) for one in ballots if one.purpose == "work"}
    repeats = [
        _likeness(_signs(one.vote), first[one.vote.comparison_id])
        for one in ballots
        if one.purpose == "repeat" and one.vote.comparison_id in first
    ]
    seconds = [one.vote.seconds for one in ballots if one.vote.seconds is not None]
    decided = [_favours_first(one) for one in ballots if len(one.order) == 2 and one.vote.strength]
    others = [against[one.vote.id] for one in ballots if one.vote.id in against]
    return RaterQuality(
        account=person.id,
        name=person.name,
        state=person.state,
        votes=len(ballots),
        excluded=sum(one.excluded for one in ballots),
        median_seconds=round(median(seconds), 1) if seconds else None,
        fast=share(sum(one < FAST_SECONDS for one in seconds), len(seconds)),
        gold=share(sum(hits for hits, _ in gold), sum(of for _, of in gold)),
        consistency=share(sum(hits for hits, _ in repeats), sum(of for _, of in repeats)),
        agreement=share(sum(hits for hits, _ in others), sum(of for _, of in others)),
        first_shown=share(sum(decided), len(decided)),
    )


def share(hits: float, of: int) -> Share:
    """A share with its Wilson interval (Wilson 1927)."""
    if of == 0:
        return Share(hits=0, of=0, value=None, low=None, high=None)
    interval = binomtest(round(hits), of).proportion_ci(method="wilson")
    return Share(hits=hits, of=of, value=hits / of, low=float(interval.low), high=float(interval.high))


Signs = dict[tuple[str, str], int]  # of every two answers, in the order of their ids: 1 first better, -1 second, 0 tie


def _signs(vote: Vote) -> Signs:
    return _ranking_signs(vote.ranking)


def _ranking_signs(ranking: Sequence[Sequence[str]]) -> Signs:
    place = {response: at for at, group in enumerate(ranking) for response in group}
    pairs = combinations(sorted(place), 2)
    return {(one, two): (place[two] > place[one]) - (place[two] < place[one]) for one, two in pairs}


def _favours_first(ballot: Ballot) -> bool:
    return ballot.vote.ranking[0] == (ballot.order[0],)


def _likeness(said: Signs, right: Signs) -> tuple[float, int]:
    """How many pairs are ordered as in ``right``, of how many; a vote that ranks nothing gets none of them right."""
    return sum(said.get(pair) == sign for pair, sign in right.items()), len(right)


def _against_the_others(work: Sequence[Ballot]) -> tuple[dict[str, tuple[float, int]], str]:
    """For each vote: how many of its pairs agree with the other raters, of how many where they have a consensus."""
    units: dict[tuple[str, tuple[str, str]], dict[str, int]] = defaultdict(dict)
    for one in work:
        for pair, sign in _signs(one.vote).items():
            units[one.vote.comparison_id, pair][one.account] = sign
    ratings = [{rater: sign + 1 for rater, sign in unit.items()} for unit in units.values()]
    skilled = has_enough(ratings)
    weight = _skill(ratings) if skilled else {}
    agreeing: dict[str, tuple[float, int]] = {}
    for one in work:
        hits = of = 0
        for pair, sign in _signs(one.vote).items():
            tally: dict[int, float] = defaultdict(float)
            for rater, other in units[one.vote.comparison_id, pair].items():
                if rater != one.account:
                    tally[other] += weight.get(rater, 1.0)
            best = max(tally.values(), default=0.0)
            winners = [other for other, votes_for in tally.items() if votes_for == best]
            if len(winners) == 1:
                hits, of = hits + (winners[0] == sign), of + 1
        agreeing[one.vote.id] = (hits, of)
    return agreeing, "dawid_skene" if skilled else "majority"


def _skill(ratings: Sequence[Mapping[str, int]]) -> dict[str, float]:
    """How often each rater is right by Dawid and Skene's estimate: the weight of their vote in the consensus."""
    truth = dawid_skene(ratings, 3)
    right, seen = defaultdict[str, float](float), defaultdict[str, int](int)
    for at, unit in enumerate(ratings):
        for rater, category in unit.items():
            right[rater] += float(truth[at, category])
            seen[rater] += 1
    return {rater: right[rater] / seen[rater] for rater in seen}
