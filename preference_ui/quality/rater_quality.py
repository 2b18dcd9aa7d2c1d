"""How good the votes are: every rater against gold, against themselves, against the others; and all raters together."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import median
from typing import Any

from pydantic import BaseModel
from scipy.stats import binomtest
from sqlalchemy import ColumnElement, Connection, Row, select

from alignment.preferences.consensus import LEVEL
from alignment.preferences.dawid_skene import has_enough, log_odds
from alignment.preferences.vote_agreement import Agreement, agreement_figures, share_of_votes
from alignment.records import Comparison, Vote
from preference_ui.labelling.ballots import Ballot, read_ballots, read_comparisons
from preference_ui.store.schema import accounts, votes
from preference_ui.store.store import Store

FAST_SECONDS = 3.0  # nobody reads two answers in less
_BOOTSTRAP = 1000


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
    """Every rater, and how far all agree. ``consensus`` says how "what the others say" was found.

    ``newest`` is how many of the newest votes it was found on; None: on all.
    """

    votes: int
    comparisons: int
    consensus: str
    raters: list[RaterQuality]
    agreement: list[Agreement]
    newest: int | None = None


def quality_report(store: Store, *, newest: int | None = None) -> QualityReport:
    """The figures on every standing vote, or on the ``newest`` so many where there are more: so that they take no
    longer with every vote. Excluded votes are counted but enter no figure of the others."""
    with store.read() as connection:
        people = connection.execute(select(accounts).order_by(accounts.c.name)).all()
        recent = [] if newest is None else _recent(connection, newest)
        ballots = read_ballots(connection, *recent)
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
        newest=newest if recent else None,
    )


def _items(connection: Connection, names: set[str]) -> tuple[dict[str, Comparison], dict[str, Any]]:
    items, expected = {}, {}
    for name, row in read_comparisons(connection, names).items():
        items[name] = Comparison.model_validate({"id": name, "prompt": row.prompt, "responses": row.responses})
        expected[name] = row.expected
    return items, expected


def _recent(connection: Connection, newest: int) -> list[ColumnElement[bool]]:
    """Votes after the one that is no longer among the ``newest``; no condition where there are no more than these."""
    before = select(votes.c.created).order_by(votes.c.created.desc()).offset(newest).limit(1)
    moment = connection.execute(before).scalar_one_or_none()
    return [] if moment is None else [votes.c.created > moment]


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
        gold=share_of_pairs(gold),
        consistency=share_of_pairs(repeats),
        agreement=share_of_pairs(others),
        first_shown=share(sum(decided), len(decided)),
    )


def share(hits: float, of: int) -> Share:
    """A share with its Wilson interval (Wilson 1927)."""
    if of == 0:
        return Share(hits=0, of=0, value=None, low=None, high=None)
    interval = binomtest(round(hits), of).proportion_ci(method="wilson")
    return Share(hits=hits, of=of, value=hits / of, low=float(interval.low), high=float(interval.high))


def share_of_pairs(votes: Sequence[tuple[float, int]]) -> Share:
    """The share of pairs that are right, of each vote's ``(right, pairs)``; pairs of one ranking are one observation.

    Its interval is Wilson's where every vote is on one pair.
    """
    pairs = [(1.0 if at < hits else 0.0, vote) for vote, (hits, of) in enumerate(votes) for at in range(of)]
    if not pairs:
        return share(0, 0)
    rate = share_of_votes([right for right, _vote in pairs], votes=[vote for _right, vote in pairs])
    return Share(hits=sum(hits for hits, _of in votes), of=rate.n, value=rate.value, low=rate.low, high=rate.high)


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
    """For each vote: how many of its pairs agree with the other raters, of how many where they have a consensus.

    Where there are votes enough the others weigh what Dawid and Skene's estimate makes of them on other comparisons:
    none of it comes from the pair in question, and a rater's own vote takes no part in what they are held against.
    """
    units: dict[tuple[str, tuple[str, str]], dict[str, int]] = defaultdict(dict)
    for one in work:
        for pair, sign in _signs(one.vote).items():
            units[one.vote.comparison_id, pair][one.account] = sign
    ratings = [{rater: sign + 1 for rater, sign in unit.items()} for unit in units.values()]
    skilled = has_enough(ratings)
    weights = dict(zip(units, log_odds(ratings, [name for name, _pair in units]), strict=True)) if skilled else {}
    agreeing: dict[str, tuple[float, int]] = {}
    for one in work:
        hits = of = 0
        for pair, sign in _signs(one.vote).items():
            unit = one.vote.comparison_id, pair
            own = weights.get(unit, {})
            others = {rater: other for rater, other in units[unit].items() if rater != one.account}
            consensus = _consensus(others, {rater: own.get(rater, 1.0) for rater in others})
            if consensus is not None:
                hits, of = hits + (consensus == sign), of + 1
        agreeing[one.vote.id] = (hits, of)
    return agreeing, "dawid_skene" if skilled else "majority"


def _consensus(signs: Mapping[str, int], weights: Mapping[str, float]) -> int | None:
    """What most of the weight says; None where it is level, or nobody weighs anything."""
    tally: dict[int, float] = defaultdict(float)
    for rater, sign in signs.items():
        tally[sign] += weights[rater]
    heads = Counter(signs.values())
    first, second = ([*sorted(tally, key=lambda sign: tally[sign], reverse=True), None, None])[:2]
    if first is None or tally[first] == 0:
        return None
    if second is None:
        return first
    apart = tally[first] - tally[second]
    return first if apart > 0 and (heads[first] != heads[second] or apart >= LEVEL) else None
