"""Which of several solved examples a question is shown, by their texts."""

import random
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from alignment.recipe.base import Choice

WORDS = r"(?u)\b\w+\b"  # single characters too: in arithmetic they are the question


def chosen_places(texts: Sequence[str], count: int, choose: Choice, question: str, seed: int) -> list[int]:
    """The places of ``count`` examples for a question, in the order in which they are shown.

    Args:
        texts: what each example asks.
        seed: of ``random``; it has to differ from question to question.
    """
    if choose == "fixed" or count == 0:
        return list(range(count))
    if choose == "random":
        return random.Random(seed).sample(range(len(texts)), count)
    return _nearest(tuple(texts))(question, count)


@lru_cache(maxsize=16)
def _nearest(texts: tuple[str, ...]) -> Callable[[str, int], list[int]]:
    """The places of the highest BM25 scores, the highest last, next to the question (Liu et al. 2022).

    Of equal scores the earlier example is taken first. Words count whatever their case; none is left out.
    """
    import bm25s  # which imports pandas where it is installed

    index = bm25s.BM25()
    index.index(_words(texts), show_progress=False)

    def nearest(question: str, count: int) -> list[int]:
        words = [word for word in _words([question])[0] if word in index.vocab_dict]
        scores = index.get_scores(words) if words else np.zeros(len(texts))
        best = np.argsort(-scores, kind="stable")[:count]
        places: list[int] = best[::-1].tolist()
        return places

    return nearest


def _words(texts: Sequence[str]) -> list[list[str]]:
    from bm25s import tokenize

    found: list[list[str]] = tokenize(
        list(texts), token_pattern=WORDS, stopwords=None, return_ids=False, show_progress=False
    )
    return found
