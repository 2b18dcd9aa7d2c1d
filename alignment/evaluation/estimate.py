"""A figure that knows its own interval."""

from typing import Self


class Estimate(float):
    """A value, and its 95 % interval from ``low`` to ``high`` (None where none was asked for or can be given)."""

    low: float | None
    high: float | None

    def __new__(cls, value: float, low: float | None = None, high: float | None = None) -> Self:
        self = super().__new__(cls, value)
        self.low, self.high = low, high
        return self
