"""What a short answer says: whether it is a reference, its last number, the label that it gives."""

import re
from collections.abc import Sequence
from decimal import Decimal

from alignment.data.text import plain_answer
from alignment.metrics.word_lists import word_pattern

# A sign counts only where no word stands before it: "10-3" ends in 3, not in -3.
_NUMBER = re.compile(r"(?:(?<!\w)[-−+])?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")


def same(text: str, reference: str) -> bool:
    """Whether a text is its reference, apart from case, white space and punctuation at the ends."""
    return plain_answer(text) == plain_answer(reference)


def last_number(text: str) -> Decimal | None:
    """The last number written in a text, or None: an optional sign, digits, thousands commas, a decimal point."""
    found = _NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "").replace("−", "-")) if found else None


def label_of(text: str, labels: Sequence[str], *, whole: bool = False) -> int:
    """The place of the label that stands first in a text as a word (or, ``whole``, is the text); -1 for none."""
    if whole:
        return next((i for i, label in enumerate(labels) if same(text, label)), -1)
    found = [(match.start(), -len(label), i) for i, label in enumerate(labels)
             if (match := word_pattern([label]).search(text)) is not None]  # fmt: skip
    return min(found)[2] if found else -1
