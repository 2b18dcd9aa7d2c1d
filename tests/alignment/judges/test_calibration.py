"""Agreement with raters, ceiling, position bias, temperature: against hand calculations and simulated judges."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from alignment.evaluation.calibration import HOTTEST, fit_temperature
from alignment.judges import calibration
from alignment.judges.calibration import Known
from alignment.judges.protocol import Decision, JudgeCorrection, PairJudgement, votes_of
from alignment.preferences.consensus import consensus
from alignment.records import Comparison, PreferencePair, Vote
from tests.alignment.judges.fake_server import pairs

LETTERS: dict[str, Decision] = {"l": "left", "r": "right", "t": "tie"}


def judged(*odds: tuple[float | None, float | None]) -> list[PairJudgement]:
    return [
        PairJudgement(comparison_id=f"c{number}", left_first=first, left_last=last)
        for number, (first, last) in enumerate(odds)
    ]


def many(count: int) -> list[Comparison]:
    return pairs(*[(f"short {number}", f"a longer answer {number}") for number in range(count)])


def vote(comparison: Comparison, letter: str, rater: str, kind: str = "simulated") -> Vote:
    left, right = (response.id for response in comparison.responses)
    ranking = {"l": ((left,), (right,)), "r": ((right,), (left,)), "t": ((left, right),)}.get(letter, ())
    outcome = "ranked" if ranking else {"b": "both_bad", "s": "skipped"}[letter]
    return Vote.model_validate(
        {"id": f"{comparison.id}-{rater}", "comparison_id": comparison.id, "rater": rater, "rater_kind": kind,
         "outcome": outcome, "ranking": ranking}
    )  # fmt: skip


def known(comparisons: Sequence[Comparison], letters: str) -> dict[str, Known]:
    found = calibration.known_from_votes(
        comparisons, [vote(c, one, "r") for c, one in zip(comparisons, letters, strict=True)]
    )
    return {one.comparison.id: one for one in found}


def test_orders_that_disagree_are_a_tie_and_the_bonus_of_the_first_place_is_taken_off() -> None:
    left, right, biased, weak, unread = judged((2, 1), (-1, -2), (1, -1), (3, 0.0), (None, 1))
    plain = JudgeCorrection()
    assert [plain.decision(one) for one in (left, right, biased, weak, unread)] == ["left", "right", "tie", "tie", None]
    # shown first every answer gains 1.5: without it both orders name the left one
    first = PairJudgement(comparison_id="x", left_first=2.0, left_last=-1.0)
    assert plain.decision(first) == "tie"
    assert JudgeCorrection(position=1.5).decision(first) == "left"
    assert plain.probability(first) == JudgeCorrection(position=1.5).probability(first)
    assert calibration.position_bias([first]) == 1.5
    assert calibration.position_bias([unread]) == 0
    assert JudgeCorrection(temperature=2).probability(left) == pytest.approx(1 / (1 + math.exp(-0.75)))
    assert JudgeCorrection(temperature=2).decision(left, tie_margin=0.2) == "tie"
    assert JudgeCorrection(temperature=2).decision(left, tie_margin=0.1) == "left"


def test_kappa_is_sklearns_and_ties_are_a_category() -> None:
    comparisons = many(12)
    theirs, ours = "lllrrrttlrlr", "llrrrlttllrt"
    odds = {"l": (1.0, 1.0), "r": (-1.0, -1.0), "t": (1.0, -1.0)}
    judgements = judged(*[odds[one] for one in ours])
    both = list(zip(comparisons, judgements, strict=True))
    share, kappa = calibration.agreement(both, known(comparisons, theirs), JudgeCorrection(), 0.0)
    assert kappa.value == pytest.approx(cohen_kappa_score(list(theirs), list(ours)))
    assert share.value == pytest.approx(7 / 12)
    assert (share.n, kappa.n) == (12, 12)
    assert kappa.low is not None
    assert kappa.high is not None
    assert kappa.low < kappa.value < kappa.high
    nobody = calibration.agreement(both, {}, JudgeCorrection(), 0.0)
    assert [figure.value for figure in nobody] == [None, None]


def test_what_raters_found() -> None:
    comparisons = many(5)
    said = ("llr", "lrt", "bbl", "ss", "bl")
    votes = [vote(c, letter, f"r{place}") for c, letters in zip(comparisons, said, strict=True)
             for place, letter in enumerate(letters)]  # fmt: skip
    found = calibration.known_from_votes(comparisons, votes)
    assert [(one.comparison.id, one.decision) for one in found] == [("c0", "left"), ("c1", "tie"), ("c4", "left")]
    assert found[0].by_rater == {"r0": "left", "r1": "left", "r2": "right"}
    assert found[0].probability == pytest.approx(2 / 3)
    assert found[1].probability == pytest.approx(0.5)


def test_pairs_without_votes_are_known_on_either_side() -> None:
    prompt = many(1)[0].prompt.messages
    rows = [PreferencePair(id=f"{n}", prompt_id="p", prompt=prompt, chosen=f"good {n}", rejected=f"bad {n}",
                           agreement=0.75) for n in range(20)]  # fmt: skip
    found = calibration.known_from_pairs(rows)
    sides = [one.decision for one in found]
    assert 4 < sides.count("left") < 16
    for one, row in zip(found, rows, strict=True):
        better = one.comparison.responses[0 if one.decision == "left" else 1]
        assert better.text == row.chosen
        assert one.probability == (0.75 if one.decision == "left" else 0.25)


def test_the_ceiling_is_a_raters_kappa_with_the_others() -> None:
    comparisons = many(6)
    rows = {"a": "llrrlr", "b": "llrrlr", "c": "lrrrll"}
    votes = [vote(c, row[place], rater) for rater, row in rows.items() for place, c in enumerate(comparisons)]
    found = calibration.known_from_votes(comparisons, votes)
    # the others of c are a and b, who agree; the others of a are b and c, level on two
    of_c = cohen_kappa_score(list("llrrlr"), list("lrrrll"))
    of_a = cohen_kappa_score(list("llrrlr"), list("ltrrlt"))
    figure = calibration.ceiling(found)
    assert figure is not None
    assert figure.value == pytest.approx((of_c + 2 * of_a) / 3)
    assert calibration.ceiling(calibration.known_from_votes(comparisons, votes[:6])) is None


def test_the_temperature_of_a_simulated_judge_is_found_again() -> None:
    random = np.random.default_rng(0)
    true = random.normal(0, 1.5, 4000)
    outcomes = (random.random(4000) < 1 / (1 + np.exp(-true))).astype(float)
    said = 3 * true  # three times as sure as it may be
    assert fit_temperature(said.tolist(), outcomes.tolist()) == pytest.approx(3, rel=0.1)
    assert fit_temperature([], []) == 1.0
    wrong = fit_temperature((-said).tolist(), outcomes.tolist())
    assert wrong == pytest.approx(HOTTEST, rel=0.01)


def test_calibration_error_falls_on_pairs_that_the_temperature_was_not_fitted_on() -> None:
    random = np.random.default_rng(1)
    true = random.normal(0, 1.5, 600)
    comparisons = many(600)
    letters = ["l" if random.random() < 1 / (1 + math.exp(-x)) else "r" for x in true]
    judgements = judged(*[(4 * x + 1.0, 4 * x - 1.0) for x in true])
    raters = known(comparisons, "".join(letters))
    correction = calibration.fit(judgements, raters, position=True)
    assert correction.position == pytest.approx(1.0)
    assert correction.temperature == pytest.approx(4, rel=0.3)
    corrected, plain = calibration.calibration_errors(judgements, raters, correction)
    assert corrected is not None
    assert plain is not None
    assert corrected < 0.06 < 0.12 < plain
    assert calibration.calibration_errors(judgements[:3], raters, correction) == (None, None)


def test_length_and_own_answers() -> None:
    comparisons = many(4)
    decisions: list[Decision | None] = ["right", "right", "left", "tie"]
    longer = calibration.longer_wins(list(zip(comparisons, decisions, strict=True)))
    assert longer is not None
    assert (longer.value, longer.n) == (pytest.approx(2 / 3), 3)
    left, right = comparisons[0].responses
    mixed = comparisons[0].model_copy(update={"responses": (left.model_copy(update={"model": "own"}), right)})
    own = calibration.own_wins([(mixed, "left"), (comparisons[1], "left")], "own")
    assert own is not None
    assert (own.value, own.n) == (1, 1)
    assert calibration.own_wins([(comparisons[1], "left")], "own") is None


def test_votes_are_told_apart_and_weigh_what_the_recipe_says() -> None:
    comparisons = many(4)
    judgements = [*judged((3, 3), (0.4, 0.4), (1, -1)), PairJudgement(comparison_id="c3", note="suspect")]
    votes = votes_of("judge-x", comparisons, judgements, JudgeCorrection())
    assert {one.rater_kind for one in votes} == {"judge"}
    assert [(one.outcome, one.strength) for one in votes] == [
        ("ranked", 3),
        ("ranked", 1),
        ("ranked", 0),
        ("flagged", None),
    ]
    unread = [PairJudgement(comparison_id="c0"), PairJudgement(comparison_id="c1", note="unasked")]
    [skipped] = votes_of("judge-x", comparisons[:2], unread, JudgeCorrection())
    assert skipped.outcome == "skipped"
    people = [vote(comparisons[0], "r", "ada", "human"), vote(comparisons[0], "r", "bob", "human")]
    alone, mixed, heavy = (
        consensus(comparisons[:1], [votes[0], *people], weights)[0]
        for weights in ({"judge": 1.0}, {"judge": 1.0, "human": 1.0}, {"judge": 4.0, "human": 1.0})
    )
    left, right = (response.id for response in comparisons[0].responses)
    assert (alone.winner, alone.votes, alone.agreement, alone.rater_kind) == (left, 1, 1.0, "judge")
    assert (mixed.winner, mixed.votes, mixed.agreement) == (right, 3, pytest.approx(2 / 3))
    assert (heavy.winner, heavy.agreement) == (left, pytest.approx(4 / 6))
