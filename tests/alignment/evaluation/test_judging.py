from pathlib import Path

import pytest

from alignment.preferences.outcomes import rubric_outcomes, score_outcomes
from alignment.preferences.rubric import Rubric, load_rubric
from alignment.preferences.simulated_raters import SimulatedRater, simulated_raters
from alignment.recipe.raters import SimulatedRaters
from alignment.records import Message, Prompt, Response, Sampling

RUBRIC = """
name: brief
criteria:
  - {name: few_words, text: It is short., measure: words, weight: 1, full_at_most: 2, zero_at: 12}
"""
PROMPTS = [Prompt(id=str(i), messages=(Message(role="user", content="say red"),)) for i in range(3)]


def responses(model: str, *texts: str) -> list[Response]:
    return [
        Response(id=f"{model}-{i}", prompt_id=str(i), text=text, model=model, sampling=Sampling(), seed=i,
                 tokens=len(text.split()), finished=True)
        for i, text in enumerate(texts)
    ]  # fmt: skip


@pytest.fixture
def rubric(tmp_path: Path) -> Rubric:
    path = tmp_path / "rubric.yaml"
    path.write_text(RUBRIC)
    return load_rubric(path)


def test_the_better_answer_by_the_rubric_wins_on_either_side(rubric: Rubric) -> None:
    raters = simulated_raters(SimulatedRaters(rubric="", noise=0.0), rubric, seed=0)
    left = responses("left", "yes red", "so " * 12, "yes red")
    right = responses("right", "so " * 12, "yes red", " yes red ")
    assert rubric_outcomes(PROMPTS, left, right, raters) == [1.0, 0.0, 0.5]
    assert rubric_outcomes(PROMPTS, right, left, raters) == [0.0, 1.0, 0.5]


def test_level_votes_are_a_tie_and_a_majority_is_not(rubric: Rubric) -> None:
    """Nine words against eight lie one point apart: noise of two points splits the raters."""
    left, right = responses("left", *["so " * 9] * 3), responses("right", *["so " * 8] * 3)
    for seed in range(20):
        raters = [SimulatedRater(f"r{i}", rubric, noise=2.0, tie_margin=0.0, seed=seed) for i in range(2)]
        votes = [rubric_outcomes(PROMPTS, left, right, [rater]) for rater in raters]
        together = rubric_outcomes(PROMPTS, left, right, raters)
        assert together == [0.5 if a != b else a for a, b in zip(*votes, strict=True)]


def test_scores(rubric: Rubric) -> None:
    left, right = responses("left", "a", "b", "same"), responses("right", "c", "d", "same ")
    assert score_outcomes(left, right, [1.0, -1.0, 2.0], [0.5, 0.0, 1.0]) == [1.0, 0.0, 0.5]
    assert score_outcomes(left, right, [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]) == [0.5, 0.5, 0.5]
