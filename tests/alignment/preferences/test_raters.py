from collections.abc import Callable
from statistics import fmean, pstdev
from typing import Any

import pytest

from alignment.preferences.rubric import Rubric
from alignment.preferences.simulated_raters import Rater, SimulatedRater, simulated_raters
from alignment.recipe.raters import SimulatedRaters

Make = Callable[..., Any]

# By hand: 10 points for one sentence, 7.5 for two, 5 for three, 2.5 for four, 0 for five.
SENTENCES = Rubric.model_validate(
    {
        "name": "fewer sentences",
        "both_bad_below": 1.0,
        "clearly_better": 3.0,
        "much_better": 6.0,
        "criteria": [
            {"name": "few", "text": "t", "measure": "sentences", "weight": 1, "full_at_most": 1, "zero_at": 5}
        ],
    }
)


def rater(noise: float = 0.0, tie_margin: float = 0.25, name: str = "simulated-1", seed: int = 0) -> SimulatedRater:
    return SimulatedRater(name, SENTENCES, noise, tie_margin, seed)


def sentences(count: int, word: str = "Yes") -> str:
    return " ".join([f"{word}."] * count)


@pytest.mark.parametrize(
    ("left", "right", "ranking", "strength"),
    [(1, 2, (("a",), ("b",)), 1), (3, 1, (("b",), ("a",)), 2), (1, 4, (("a",), ("b",)), 3), (2, 2, (("a", "b"),), 0)],
)
def test_noiseless_votes_follow_the_rubric(
    comparison: Make, left: int, right: int, ranking: tuple[tuple[str, ...], ...], strength: int
) -> None:
    (vote,) = rater().rate([comparison(sentences(left), sentences(right, "No"))])
    assert (vote.outcome, vote.ranking, vote.strength) == ("ranked", ranking, strength)
    assert (vote.rater, vote.rater_kind, vote.created) == ("simulated-1", "simulated", None)


def test_both_bad_ranks_nothing(comparison: Make) -> None:
    (vote,) = rater().rate([comparison(sentences(5), sentences(6))])
    assert (vote.outcome, vote.ranking, vote.strength) == ("both_bad", (), None)


def test_identical_texts_tie_whatever_the_noise(comparison: Make) -> None:
    for seed in range(20):
        (vote,) = rater(noise=5.0, tie_margin=0.0, seed=seed).rate([comparison("Yes.", "Yes. ")])
        assert (vote.outcome, vote.ranking, vote.strength) == ("ranked", (("a", "b"),), 0)


def test_a_ranking_has_tie_groups_and_no_strength(comparison: Make) -> None:
    (vote,) = rater(tie_margin=2.6).rate([comparison(sentences(4), sentences(2), sentences(1), sentences(3))])
    assert vote.ranking == (("b", "c"), ("a", "d"))  # 10 and 7.5 tie, 5 and 2.5 tie, and 7.5 does not drag 5 along
    assert vote.strength is None


def test_votes_depend_on_neither_order_nor_batch(comparison: Make) -> None:
    one = comparison(sentences(1), sentences(2), id="one")
    two = comparison(sentences(3), sentences(2), id="two")
    noisy = rater(noise=3.0)
    together = noisy.rate([one, two])
    assert noisy.rate([two, one]) == together[::-1]
    assert [noisy.rate([c])[0] for c in (one, two)] == together
    flipped = one.model_copy(update={"responses": one.responses[::-1]})
    assert noisy.rate([flipped])[0].ranking == together[0].ranking
    assert together[0].id != together[1].id


def test_noise_has_its_standard_deviation_and_is_each_raters_own(comparison: Make) -> None:
    asked = comparison(sentences(3), sentences(2))
    drawn = [rater(noise=2.0, seed=seed).scores(asked)["a"] - 5.0 for seed in range(2000)]
    assert fmean(drawn) == pytest.approx(0, abs=0.15)  # standard error 0.045
    assert pstdev(drawn) == pytest.approx(2.0, abs=0.12)
    assert rater(noise=1.0).scores(asked) != rater(noise=1.0, name="simulated-2").scores(asked)


def test_factory_makes_named_raters() -> None:
    made: list[Rater] = list(simulated_raters(SimulatedRaters(rubric="r.yaml", count=2, noise=0.7), SENTENCES, 5))
    assert [(r.name, r.kind) for r in made] == [("simulated-1", "simulated"), ("simulated-2", "simulated")]
