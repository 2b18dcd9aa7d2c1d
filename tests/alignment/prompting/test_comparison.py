"""Comparisons of forms: by hand, and by simulation of forms that do not differ."""

import numpy as np
import pytest

from alignment.prompting.comparison import Cell, best_forms, form_differences, model_differences, share


def cell(form: str, right: list[bool]) -> Cell:
    return Cell(model="m", task="t", form=form, right=share(right), unread=0.0, prompt_tokens=1.0, answer_tokens=1.0)


def test_forms_are_compared_question_by_question() -> None:
    """20 questions: the second form is right where the first is, and on eight more; the third is the first's equal."""
    first = [place < 6 for place in range(20)]
    second = [place < 14 for place in range(20)]
    verdicts = {("m", "t", name): right for name, right in (("a", first), ("b", second), ("c", first))}
    found = {(one.left, one.right): one.difference for one in form_differences(verdicts)}
    assert found["a", "b"].value == pytest.approx(-0.4)
    assert found["a", "b"].significant
    assert found["a", "c"].value == 0
    assert not found["a", "c"].significant
    cells = [cell(name, right) for (_m, _t, name), right in verdicts.items()]
    assert best_forms(cells, form_differences(verdicts)) == {("m", "t"): ("b",)}


def test_models_are_compared_in_the_same_form() -> None:
    verdicts = {(model, "t", form): [model == "x"] * 10 for model in ("x", "y") for form in ("a", "b")}
    found = model_differences(verdicts)
    assert [(one.where, one.left, one.right, one.difference.value) for one in found] == [
        ("a", "x", "y", 1.0), ("b", "x", "y", 1.0),
    ]  # fmt: skip


def test_equal_forms_are_told_apart_no_more_often_than_promised() -> None:
    """Six forms of the same truth, 80 questions, 300 tables: any of 15 differences is called one in at most 5 %.

    One in twenty is meant, so with 300 tables at most 24 (binomial, 98 %); uncorrected it would be about a third.
    """
    rng = np.random.default_rng(5)
    wrong = 0
    for _ in range(300):
        ease = rng.beta(2, 2, size=80)
        verdicts = {("m", "t", f"f{form}"): (rng.random(80) < ease).tolist() for form in range(6)}
        wrong += any(one.difference.significant for one in form_differences(verdicts))
    assert wrong <= 24
