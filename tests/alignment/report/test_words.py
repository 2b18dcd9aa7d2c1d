"""The report's sentences and numbers."""

import pytest

from alignment.evaluation.gate import GateLook, decide
from alignment.recipe.gate import Condition, Gate
from alignment.report import words


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1 min"), (200, "3 min 20 s"), (3600, "1 h"),
        (7500, "2 h 5 min"),
    ],
)  # fmt: skip
def test_durations(seconds: float, said: str) -> None:
    assert words.duration(seconds) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.46, "m was 0.46, wanted above 0.5 (short by 0.04)"),
        (0.454388, "m was 0.454, wanted above 0.5 (short by 0.046)"),
        (0.49998, "m was 0.49998, wanted above 0.5 (short by 2e-05)"),
        (0.5, "m was 0.5, wanted above 0.5 (short by 0)"),
    ],
)
def test_a_shortfall_never_reads_like_a_pass(value: float, said: str) -> None:
    gate = Gate(evaluation="e", conditions=(Condition(metric="m", above=0.5),))
    (check,) = decide(gate, {"m": value}).checks
    assert words._shortfall(check) == said


def test_a_check_that_could_not_be_made_says_why() -> None:
    gate = Gate(evaluation="e", conditions=(Condition(metric="m", above=0.5),))
    (check,) = decide(gate, {}).checks
    assert words._shortfall(check) == "m could not be checked (the evaluation has no such metric)"


def test_counts_and_figures() -> None:
    assert words.count(1234567.0) == "1\u202f234\u202f567"
    assert words.figure(-0.123456) == "−0.1235"
    assert words.percent_range(0.701, 0.888) == "70–89\u202f%"


def test_the_gates_look_and_level_are_said() -> None:
    look = GateLook(number=8, prompts=400, level=0.025 / 8, spends=True)
    said = words.look_words(look)
    assert said.startswith("look 8 at these 400 held-out prompts, held to 0.31\u202f% one-sided: with each")
    assert words.level_words(0.025 / 8) == "0.31\u202f%"
    assert words.level_words(None) == "–"
