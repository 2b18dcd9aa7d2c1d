import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.metrics.short_answers import last_number
from alignment.metrics.text_metrics import (
    bleu,
    distinct_n,
    exact_match,
    finished_rate,
    mean_words,
    number_match,
    repetition,
    rouge,
)


def test_mean_words() -> None:
    assert mean_words(["one two  three", "", "four\nfive"]) == pytest.approx(5 / 3)


def test_distinct_n_by_hand() -> None:
    # Bigrams: "a b", "b a", "a b" and "A b": two different ones among four.
    assert distinct_n(["a b a b", "A b"], 2) == 0.5
    assert distinct_n(["a b a b", "A b"], 1) == pytest.approx(2 / 6)
    assert distinct_n(["word"], 2) == 0.0


def test_repetition_by_hand() -> None:
    # "a b a b a b" has five bigrams, two different; a single word has none.
    assert repetition(["a b a b a b"], n=2) == pytest.approx(3 / 5)
    assert repetition(["a b a b a b", "a"], n=2) == pytest.approx(3 / 10)
    assert repetition(["one two three four five"]) == 0.0
    assert repetition(["so " * 12]) == pytest.approx(8 / 9)


@given(st.lists(st.text(alphabet="ab \n", max_size=40), min_size=1, max_size=5), st.integers(1, 4))
def test_shares_are_shares(texts: list[str], n: int) -> None:
    assert 0 <= distinct_n(texts, n) <= 1
    assert 0 <= repetition(texts, n) < 1


def test_finished_rate() -> None:
    assert finished_rate([True, False, True, True]) == 0.75


def test_bleu_by_hand_and_with_its_signature() -> None:
    assert bleu(["the cat sat on the mat ."], ["the cat sat on the mat ."]).score == pytest.approx(100)
    # Five of six words and 3 of 5, 2 of 4, 1 of 3 n-grams match; lengths are equal, so no brevity penalty.
    score = bleu(["the cat sat on a mat"], ["the cat sat on the mat"])
    assert score.score == pytest.approx(100 * math.prod([5 / 6, 3 / 5, 2 / 4, 1 / 3]) ** 0.25, rel=1e-6)
    assert "tok:13a" in score.signature
    assert "version:" in score.signature


def test_rouge_by_hand() -> None:
    score = rouge(["the cat sat"], ["the cat slept here"])
    assert score.rouge1 == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
    assert score.rouge2 == pytest.approx(2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))
    assert score.rougeL == score.rouge1


def test_exact_match_ignores_case_space_and_end_marks() -> None:
    assert exact_match([" Paris. ", "Lyon", "the  sea"], ["paris", "Paris", "The sea!"]) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("So the total is 1,200.50 euros.", "1200.50"),
        ("#### -7", "-7"),
        ("10-3", "3"),
        ("from 5 to 12.", "12"),
        ("1,2", "2"),
        ("−4 degrees", "-4"),
        ("12,3456", "3456"),
    ],
)
def test_last_number(text: str, number: str) -> None:
    assert last_number(text) == Decimal(number)


def test_number_match_compares_values() -> None:
    assert number_match(["It is 1,200.0", "no idea", "7"], ["#### 1200", "#### 5", "#### 8"]) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="reference 2 holds no number"):
        number_match(["1", "2"], ["1", "two"])


def test_nothing_to_measure_is_refused() -> None:
    for metric in (mean_words, repetition, finished_rate):
        with pytest.raises(ValueError, match="at least one text"):
            metric([])
    with pytest.raises(ValueError, match="as many references"):
        bleu(["a"], ["a", "b"])
