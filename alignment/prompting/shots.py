"""Which solved examples a prompt shows before its question."""

import random
from collections.abc import Callable, Sequence

import numpy as np

from alignment.data.questions import Question
from alignment.recipe.stages.experiments.benchmark import PromptForm
from alignment.rollouts.seeds import derived_seed

WORDS = r"(?u)\b\w+\b"  # single characters too: in arithmetic they are the question
Choose = Callable[[Question], list[Question]]
"""The examples for a question, in the order in which they are shown."""


def chooser(form: PromptForm, examples: Sequence[Question], seed: int) -> Choose:
    """How a form chooses among ``examples``, of which there are enough."""
    if form.shots == 0:
        return lambda _question: []
    if form.choose == "fixed":
        return lambda _question: list(examples[: form.shots])
    if form.choose == "random":
        return lambda question: random.Random(derived_seed(seed, "shots", question.prompt.id)).sample(
            list(examples), form.shots
        )
    return nearest(form.shots, examples)


def nearest(count: int, examples: Sequence[Question]) -> Choose:
    """The ``count`` examples of the highest BM25 score, the highest last, next to the question (Liu et al. 2022).

    Of equal scores the earlier example is taken first. Words count whatever their case; none is left out.
    """
    import bm25s  # which imports pandas where it is installed

    index = bm25s.BM25()
    index.index(_words([example.text for example in examples]), show_progress=False)

    def choose(question: Question) -> list[Question]:
        words = [word for word in _words([question.text])[0] if word in index.vocab_dict]
        scores = index.get_scores(words) if words else np.zeros(len(examples))
        best = np.argsort(-scores, kind="stable")[:count]
        return [examples[place] for place in reversed(best.tolist())]

    return choose


def _words(texts: list[str]) -> list[list[str]]:
    from bm25s import tokenize

    found: list[list[str]] = tokenize(texts, token_pattern=WORDS, stopwords=None, return_ids=False, show_progress=False)
    return found
