"""Arithmetic that somebody else writes: exact, bounded in time and size, and without ``eval``.

Numbers are fractions, so that 0.1 + 0.2 is 0.3 and 10 ** 30 + 1 is a whole number. What would take long or fill memory
is refused before it is computed.
"""

import ast
import operator
from collections.abc import Callable
from decimal import Decimal, InvalidOperation, localcontext
from fractions import Fraction

LONGEST = 200  # characters of an expression
DIGITS = 100  # of a result's numerator and denominator
DECIMALS = 10  # to which a result that is no whole number is rounded
_BITS = int(DIGITS * 3.33)  # bits of a number of so many digits

_BINARY: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction | int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_UNARY: dict[type[ast.unaryop], Callable[[Fraction], Fraction]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
_WRITTEN = {"×": "*", "·": "*", "÷": "/", "−": "-", "^": "**"}  # as people write them, and models with them


class ExpressionError(ValueError):
    """What is wrong with an expression, in words that may be told to who wrote it."""


def evaluate(expression: str) -> Fraction:
    """The value of ``+ - * / // % **`` and brackets over numbers, as Python gives them precedence.

    Raises ExpressionError for anything else, for a division by zero, and for what is too long or too large.
    """
    if len(expression) > LONGEST:
        raise ExpressionError(f"the expression is longer than {LONGEST} characters")
    for sign, meaning in _WRITTEN.items():
        expression = expression.replace(sign, meaning)
    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise ExpressionError("this is no arithmetic expression") from None
    return _value(tree.body, expression.strip())


def written(value: Fraction) -> str:
    """A value in digits: a whole number exactly, another rounded to 10 decimal places."""
    if value.denominator == 1:
        return str(value.numerator)
    with localcontext() as context:
        context.prec = 2 * DIGITS + DECIMALS
        rounded = (Decimal(value.numerator) / Decimal(value.denominator)).quantize(Decimal(1).scaleb(-DECIMALS))
    return f"{rounded:f}".rstrip("0").rstrip(".").replace("-0", "0", 1 if not rounded else 0)


def number_of(text: str) -> Fraction | None:
    """The number that a text is; None where it is none, or too large. Commas between thousands do not count."""
    try:
        number = Decimal(text.replace(",", "").strip())
    except InvalidOperation:
        return None
    if not number.is_finite() or abs(number.adjusted()) > DIGITS:
        return None
    return Fraction(number)


def _value(node: ast.expr, source: str) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        number = number_of((ast.get_source_segment(source, node) or "").replace("_", ""))
        if number is None:  # 0x10, or far too large
            raise ExpressionError("a number is not written in decimal digits, or is too large")
        return number
    if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        return _UNARY[type(node.op)](_value(node.operand, source))
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left, source), _value(node.right, source)
        return _bounded(_power(left, right) if isinstance(node.op, ast.Pow) else _combined(node.op, left, right))
    raise ExpressionError("only numbers, brackets and + - * / // % ** are known")


def _combined(sign: ast.operator, left: Fraction, right: Fraction) -> Fraction:
    if type(sign) not in _BINARY:
        raise ExpressionError("only numbers, brackets and + - * / // % ** are known")
    try:
        return Fraction(_BINARY[type(sign)](left, right))
    except ZeroDivisionError:
        raise ExpressionError("division by zero") from None


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        raise ExpressionError("a power has to be a whole number")
    size = max(base.numerator.bit_length(), base.denominator.bit_length())
    if base not in (-1, 0, 1) and size * abs(exponent.numerator) > _BITS + abs(exponent.numerator):
        raise ExpressionError("the result is too large")
    if base == 0 and exponent < 0:
        raise ExpressionError("division by zero")
    if base in (-1, 1):
        return base if exponent.numerator % 2 else Fraction(1)
    return Fraction(base**exponent.numerator)


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > _BITS:
        raise ExpressionError("the result is too large")
    return value
