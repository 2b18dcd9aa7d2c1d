"""How far a judge agrees with raters, before anyone trains on what it says.

Agreement is with the raters' consensus: left, right, or a tie where it has no winner; sides are dealt by digest, so no
order of a file is in κ. Pairs of one prompt share answers, and are resampled as one. The ceiling is what a rater
reaches against the consensus of the others. The bonus of the first place is fitted on the two orders of each pair and
needs no votes; the temperature is fitted on the votes, and its calibration error measured on the halves it was not
fitted on.
"""

from collections.abc import Mapping, Sequence
from math import isnan
from statistics import fmean
from typing import Any

import numpy as np
from scipy.special import log_expit

from alignment.digests import content_id, prompt_id
from alignment.evaluation.agreement import cohen_kappa
from alignment.evaluation.calibration import expected_calibration_error, fit_temperature
from alignment.evaluation.win_rate import win_rate
from alignment.judges.protocol import Decision, JudgeCorrection, PairJudgement, side
from alignment.judges.report import Figure
from alignment.preferences.consensus import consensus
from alignment.records import Comparison, PreferencePair, Prompt, RaterKind, Record, Response, Sampling, Vote

BOOTSTRAP = 1000
Pairs = Sequence[tuple[Comparison, PairJudgement]]


class Known(Record):
    """A comparison with what raters found: the consensus' decision, and every rater's own by name."""

    comparison: Comparison
    decision: Decision
    by_rater: dict[str, Decision]
    probability: float  # share of the deciding votes that went left, a tie half


def content_key(comparison: Comparison) -> str:
    """The same for two comparisons of the same answers, on whichever side they stand."""
    texts = sorted(response.text.strip() for response in comparison.responses)
    return content_id(["compared", prompt_id(comparison.prompt.messages), texts])


def known_from_votes(comparisons: Sequence[Comparison], votes: Sequence[Vote]) -> list[Known]:
    """What raters found; comparisons on which nobody decided, or most called both bad, are left out."""
    by_comparison: dict[str, list[Vote]] = {comparison.id: [] for comparison in comparisons}
    for vote in votes:
        by_comparison[vote.comparison_id].append(vote)
    found = []
    for comparison in comparisons:
        if len(comparison.responses) != 2:
            continue
        cast = by_comparison[comparison.id]
        [verdict] = consensus([comparison], cast)
        decided = verdict.left_votes + verdict.right_votes + verdict.ties
        if not decided or verdict.both_bad + verdict.flagged > decided:
            continue
        own = {}
        for vote in cast:
            [one] = consensus([comparison], [vote])
            if one.left_votes + one.right_votes + one.ties:
                own[vote.rater] = _decision(one.winner, comparison)
        share = (verdict.left_votes + verdict.ties / 2) / decided
        found.append(
            Known(
                comparison=comparison, decision=_decision(verdict.winner, comparison), by_rater=own, probability=share
            )
        )
    return found


def known_from_pairs(pairs: Sequence[PreferencePair]) -> list[Known]:
    """What raters found, where only the pairs are there (a file, or people's votes): the sides follow from a digest."""
    found = []
    for pair in pairs:
        prompt = Prompt(id=pair.prompt_id, messages=pair.prompt, kind=pair.kind)
        chosen, rejected = (
            Response(
                id=content_id(["response", pair.prompt_id, text]), prompt_id=pair.prompt_id, text=text, model="file",
                sampling=Sampling(), seed=0, tokens=0, finished=finished,
            )
            for text, finished in ((pair.chosen, pair.chosen_finished), (pair.rejected, pair.rejected_finished))
        )  # fmt: skip
        left = int(content_id(["side", pair.id]), 16) % 2 == 0
        responses = (chosen, rejected) if left else (rejected, chosen)
        comparison = Comparison(id=content_id(["known", pair.id]), prompt=prompt, responses=responses)
        share = pair.agreement if pair.agreement is not None else 1.0
        found.append(
            Known(comparison=comparison, decision="left" if left else "right", by_rater={},
                  probability=share if left else 1 - share)
        )  # fmt: skip
    return found


def position_bias(judgements: Sequence[PairJudgement]) -> float:
    """The mean log-odds that an answer gains by being shown first; 0 where nothing was read."""
    gains = [
        (one.left_first - one.left_last) / 2
        for one in judgements
        if one.left_first is not None and one.left_last is not None
    ]
    return fmean(gains) if gains else 0.0


def fit(judgements: Sequence[PairJudgement], known: Mapping[str, Known], *, position: bool) -> JudgeCorrection:
    """The correction of a judge. ``known`` maps a comparison's id to what raters found of it."""
    bias = JudgeCorrection(position=position_bias(judgements) if position else 0.0)
    odds, targets = _predictions(judgements, known, bias)
    return JudgeCorrection(position=bias.position, temperature=fit_temperature(odds, targets))


def agreement(
    pairs: Pairs, known: Mapping[str, Known], correction: JudgeCorrection, tie_margin: float
) -> tuple[Figure, Figure]:
    """The share of agreeing decisions, and Cohen's κ, of judge and consensus over pairs that both decided."""
    both = [
        (comparison, known[comparison.id].decision, decision)
        for comparison, judgement in pairs
        if comparison.id in known and (decision := correction.decision(judgement, tie_margin)) is not None
    ]
    if not both:
        return Figure(value=None), Figure(value=None)
    prompts = [comparison.prompt.id for comparison, _one, _other in both]
    _pairs, theirs, ours = zip(*both, strict=True)
    kappa = cohen_kappa(theirs, ours, bootstrap=BOOTSTRAP, clusters=prompts)
    return share([one == other for _comparison, one, other in both], prompts), Figure(
        value=None if isnan(kappa) else float(kappa), low=kappa.low, high=kappa.high, n=len(both)
    )


def ceiling(known: Sequence[Known]) -> Figure | None:
    """Mean κ of each rater with the consensus of the others; None where nobody's votes are known, or one rater's."""
    raters = sorted({rater for one in known for rater in one.by_rater})
    values, units = [], 0
    for rater in raters:
        both = [
            (one.by_rater[rater], _majority([vote for name, vote in one.by_rater.items() if name != rater]))
            for one in known
            if rater in one.by_rater and len(one.by_rater) > 1
        ]
        if both:
            kappa = float(cohen_kappa(*zip(*both, strict=True)))
            values += [] if isnan(kappa) else [kappa]
            units = max(units, len(both))
    return Figure(value=fmean(values), low=min(values), high=max(values), n=units) if values else None


def calibration_errors(
    judgements: Sequence[PairJudgement], known: Mapping[str, Known], correction: JudgeCorrection
) -> tuple[float | None, float | None]:
    """ECE with the temperature fitted on the other half, and without any; None on fewer than four pairs."""
    halves: tuple[list[PairJudgement], list[PairJudgement]] = ([], [])
    for one in judgements:
        halves[int(content_id(["half", one.comparison_id]), 16) % 2].append(one)
    position = JudgeCorrection(position=correction.position)
    predicted, raw, outcomes = [], [], []
    for fitted_on, measured_on in (halves, halves[::-1]):
        temperature = fit_temperature(*_predictions(fitted_on, known, position))
        odds, targets = _predictions(measured_on, known, position)
        for value, target in zip(odds, targets, strict=True):
            predicted += _both_sides(value / temperature)
            raw += _both_sides(value)
            outcomes += [target, 1 - target]
    if len(outcomes) < 8:
        return None, None
    return expected_calibration_error(predicted, outcomes), expected_calibration_error(raw, outcomes)


def consistency(pairs: Pairs, correction: JudgeCorrection) -> Figure:
    """The share of pairs on which both orders name the same answer."""
    orders = [
        (comparison.prompt.id, orders) for comparison, one in pairs if (orders := correction.orders(one)) is not None
    ]
    return share([side(first) == side(last) for _prompt, (first, last) in orders], [prompt for prompt, _ in orders])


def longer_wins(pairs: Sequence[tuple[Comparison, Decision | None]]) -> Figure | None:
    """The share of decided pairs of unequal length (in characters) whose winner is the longer answer."""
    won = []
    for comparison, decision in pairs:
        left, right = (len(response.text.strip()) for response in comparison.responses)
        if left != right and decision in ("left", "right"):
            won.append(((left > right) == (decision == "left"), comparison.prompt.id))
    return share(*zip(*won, strict=True)) if won else None


def own_wins(pairs: Sequence[tuple[Comparison, Decision | None]], model: str | None) -> Figure | None:
    """The share of decided pairs of one answer by ``model`` and one by another that the former won."""
    won = []
    for comparison, decision in pairs:
        left, right = (response.model == model for response in comparison.responses)
        if left != right and decision in ("left", "right"):
            won.append((left == (decision == "left"), comparison.prompt.id))
    return share(*zip(*won, strict=True)) if won else None


def share(hits: Sequence[bool], prompts: Sequence[str]) -> Figure:
    """A share with its interval: Wilson's, or as wide as pairs of one prompt that say the same make it."""
    if not hits:
        return Figure(value=None)
    rate = win_rate([float(hit) for hit in hits], clusters=prompts)
    return Figure(value=rate.value, low=rate.low, high=rate.high, n=rate.n)


def rater_kinds(kind: RaterKind | str, count: int) -> str:
    """Who raters are, in words."""
    words = {"human": ("person", "people"), "simulated": ("simulated rater", "simulated raters")}
    one, many = words.get(kind, ("rater", "raters"))
    return f"{count} {one if count == 1 else many}"


def _predictions(
    judgements: Sequence[PairJudgement], known: Mapping[str, Known], correction: JudgeCorrection
) -> tuple[list[float], list[float]]:
    odds, targets = [], []
    for one in judgements:
        orders = correction.orders(one)
        if orders is not None and one.comparison_id in known:
            odds.append(sum(orders) / 2)
            targets.append(known[one.comparison_id].probability)
    return odds, targets


def _both_sides(log_odds: float) -> list[float]:
    """P(left) and P(right): a pair's order carries no information."""
    probability = float(np.exp(log_expit(log_odds)))
    return [probability, 1 - probability]


def _decision(winner: str | None, comparison: Comparison) -> Decision:
    if winner is None:
        return "tie"
    return "left" if winner == comparison.responses[0].id else "right"


def _majority(decisions: Sequence[Any]) -> Decision:
    left, right = decisions.count("left"), decisions.count("right")
    return "tie" if left == right else "left" if left > right else "right"
