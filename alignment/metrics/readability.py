"""How hard English text is to read, by the formulas of Flesch and of Kincaid, from counts that add up over texts."""

import re

import numpy as np

from alignment.data.text import sentences
from alignment.evaluation.bootstrap import Floats

_WORD = re.compile(r"[A-Za-z0-9]+(?:['’-][A-Za-z0-9]+)*")
_VOWELS = re.compile(r"[aeiouy]+")


def text_counts(text: str) -> tuple[int, int, int]:
    """Sentences, words and syllables. A text with words has at least one sentence, whether it ends or not."""
    found = _WORD.findall(text)
    if not found:
        return 0, 0, 0
    return max(1, len(sentences(text))), len(found), sum(map(syllables, found))


def syllables(word: str) -> int:
    """The groups of vowels in an English word, a silent e at its end left out; at least one.

    A count by rule is right for about nine words of ten: good for texts, not for single words.
    """
    plain = word.lower().replace("’", "'").removesuffix("'s")
    groups = len(_VOWELS.findall(plain))
    silent = plain.endswith("e") and not plain.endswith(("le", "ee", "ye", "oe"))
    voiceless = plain.endswith("ed") and len(plain) > 3 and plain[-3] not in "aeiouytd"
    apart = plain.endswith("ing") and len(plain) > 4 and plain[-4] in "aeiouy"  # "being", "doing"
    lone = plain.endswith("le") and len(plain) > 2 and plain[-3] in "aeiouy"  # "whole", "smile"
    return max(1, groups + int(apart) - int(silent or voiceless or lone))


def flesch_reading_ease(sums: Floats) -> Floats:
    """Flesch 1948, from sums (..., 3) of sentences, words and syllables; NaN without words."""
    return _linear(sums, 206.835, -1.015, -84.6)


def flesch_kincaid_grade(sums: Floats) -> Floats:
    """Kincaid et al. 1975: the years of school that the text asks for."""
    return _linear(sums, -15.59, 0.39, 11.8)


def _linear(sums: Floats, constant: float, per_sentence: float, per_word: float) -> Floats:
    sentences, words, sounds = sums[..., 0], sums[..., 1], sums[..., 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(constant + per_sentence * words / sentences + per_word * sounds / words, dtype=np.float64)
