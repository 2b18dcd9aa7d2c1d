"""The calculator's arithmetic: exact, bounded, and nothing but arithmetic."""

import random
import time
from fractions import Fraction

import pytest

from alignment.environments.arithmetic import ExpressionError, evaluate, number_of, written


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("12 * 7", "84"),
        (" 347*86 ", "29842"),
        ("2 + 3 * 4", "14"),
        ("(2 + 3) * 4", "20"),
        ("-2 ** 2", "-4"),  # Python's precedence
        ("0.1 + 0.2", "0.3"),
        ("1 / 3", "0.3333333333"),
        ("-2 / 3", "-0.6666666667"),
        ("7 // 2", "3"),
        ("-7 // 2", "-4"),
        ("-7 % 3", "2"),
        ("2 ** -2", "0.25"),
        ("10 ** 30 + 1", "1000000000000000000000000000001"),
        ("(-1) ** 1000000001", "-1"),
        ("0 ** 5", "0"),
        ("1_000 + 1e3", "2000"),
        ("6 × 7 − 2 ÷ 2", "41"),
        ("3^2", "9"),
        ("1 / 10 ** 40", "0"),
        ("-1 / 10 ** 40", "0"),
    ],
)
def test_results(expression, result):
    assert written(evaluate(expression)) == result


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("1 / 0", "division by zero"),
        ("1 % 0", "division by zero"),
        ("0 ** -1", "division by zero"),
        ("9 ** 9 ** 9", "too large"),
        ("2 ** 0.5", "whole number"),
        ("10 ** 99 * 10 ** 99", "too large"),
        ("1e999", "too large"),
        ("1e-999999999", "too large"),
        ("0x10", "decimal digits"),
        ("1j", "only numbers"),
        ("True + 1", "only numbers"),
        ("'a' * 3", "only numbers"),
        ("__import__('os').getcwd()", "only numbers"),
        ("(1).__class__", "only numbers"),
        ("[1, 2][0]", "only numbers"),
        ("1 if 1 else 2", "only numbers"),
        ("1 << 2", "only numbers"),
        ("x + 1", "only numbers"),
        ("2 +", "no arithmetic"),
        ("", "no arithmetic"),
        ("1\n+1", "no arithmetic"),
        ("1" * 201, "longer than 200"),
        ("(" * 100 + "1" + ")" * 99, "no arithmetic"),
        ("\0", "no arithmetic"),
    ],
)
def test_what_is_refused(expression, words):
    started = time.perf_counter()
    with pytest.raises(ExpressionError, match=words):
        evaluate(expression)
    assert time.perf_counter() - started < 1


def test_whole_expressions_agree_with_python():
    draw = random.Random(3)

    def grown(depth):
        if depth == 0:
            return str(draw.randint(0, 99))
        sign = draw.choice(["+", "-", "*", "//", "%"])
        return f"({grown(depth - 1)} {sign} {grown(draw.randint(0, depth - 1))})"

    compared = 0
    for _ in range(400):
        expression = grown(draw.randint(1, 4))
        try:
            expected = eval(expression)  # our own text
        except ZeroDivisionError:
            with pytest.raises(ExpressionError):
                evaluate(expression)
            continue
        assert evaluate(expression) == expected, expression
        compared += 1
    assert compared > 200


@pytest.mark.parametrize(
    ("text", "number"),
    [("1,234.50", Fraction(2469, 2)), ("-3", Fraction(-3)), ("seven", None), ("inf", None), ("1e999999", None)],
)
def test_numbers_of_a_text(text, number):
    assert number_of(text) == number
