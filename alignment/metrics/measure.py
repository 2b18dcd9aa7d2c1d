"""An evaluation's metrics on one model's answers: what each prompt adds to each of them.

Those that need nothing but the answers are here. Perplexity and pass@k ask the model itself and are measured in
:mod:`alignment.metrics.model_metrics`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from sacrebleu.metrics import BLEU

from alignment.data.text import repeated_share
from alignment.errors import StageError
from alignment.evaluation.bootstrap import Floats, Sums, averaged
from alignment.metrics.readability import flesch_kincaid_grade, flesch_reading_ease, text_counts
from alignment.metrics.short_answers import label_of, last_number, same
from alignment.metrics.text_metrics import rouge_scores
from alignment.metrics.word_lists import phrase_pattern, refusal_pattern, word_pattern
from alignment.recipe.metrics import (
    WITH_REFERENCE,
    Classification,
    DistinctNgrams,
    Length,
    MetricList,
    Profanity,
    Readability,
    Refusals,
    RepeatedNgrams,
    Rouge,
    metric_name,
)
from alignment.records import Prompt, Response
from alignment.reward.protocol import RewardInput
from alignment.reward.rules import measured

ORDERS = 4  # of BLEU's n-grams
BEGINNING = 200  # characters in which a refusal is looked for
Maker = Callable[[Any, Sequence[Prompt], Sequence[Response]], Sums]


def measure(metrics: MetricList, prompts: Sequence[Prompt], answers: Sequence[Response]) -> dict[str, Sums]:
    """By name, those of ``metrics`` that can be told from one answer to each prompt, in the prompts' order."""
    return {
        metric_name(metric): _of_kinds(MAKERS[metric.kind](metric, prompts, answers), metric, prompts)
        for metric in metrics
        if metric.kind in MAKERS
    }


def asked(metric: Any, prompts: Sequence[Prompt]) -> list[bool]:
    """On which prompts a metric is counted, whatever the answers are."""
    return [
        (not metric.kinds or prompt.kind in metric.kinds)
        and (not isinstance(metric, WITH_REFERENCE) or prompt.reference is not None)
        and (not isinstance(metric, Classification) or label_of(prompt.reference or "", metric.labels, whole=True) >= 0)
        and (metric.kind != "number_match" or last_number(prompt.reference or "") is not None)
        for prompt in prompts
    ]


def require_prompts(metrics: MetricList, prompts: Sequence[Prompt]) -> None:
    """Raises StageError for a metric that is counted on none of the prompts, before a model is asked anything."""
    for metric in metrics:
        if not any(asked(metric, prompts)):
            wanted = "a reference that it can use" if isinstance(metric, WITH_REFERENCE) else "its kinds"
            raise StageError(
                f"the metric {metric_name(metric)} has nothing to count: none of {len(prompts)} prompts has {wanted}"
            )


def bleu_score(sums: Floats) -> Floats:
    """Corpus BLEU, 0 … 100, from sums (..., 10): matching and all n-grams of each order, both lengths.

    With sacrebleu's default smoothing ("exp"): the k-th order without a match counts half of the one before it.
    """
    correct, total = sums[..., :ORDERS], sums[..., ORDERS : 2 * ORDERS]
    mine, theirs = sums[..., -2], sums[..., -1]
    missing = np.cumsum(correct == 0, axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(correct > 0, correct, 0.5**missing) / total
        penalty = np.where(mine < theirs, np.exp(np.minimum(0.0, 1 - theirs / mine)), 1.0)
        score = 100 * penalty * np.exp(np.log(precision).mean(axis=-1))
    known = (total > 0).all(axis=-1) & (correct > 0).any(axis=-1)
    return np.asarray(np.where(known, score, 0.0), dtype=np.float64)


def macro_f1(sums: Floats) -> Floats:
    """The mean F1 over labels from sums (..., 3L): hits, given and wanted of each label; unseen labels left out."""
    hits, given, wanted = np.split(sums, 3, axis=-1)
    seen = given + wanted > 0
    f1 = 2 * hits / np.where(seen, given + wanted, 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((f1 * seen).sum(axis=-1) / seen.sum(axis=-1), dtype=np.float64)


def _references(prompts: Sequence[Prompt]) -> list[str]:
    return [prompt.reference or "" for prompt in prompts]


def _each(
    score: Callable[[str, str], float | None], *, binary: bool = False
) -> Callable[[Any, Sequence[Prompt], Sequence[Response]], Sums]:
    """A metric that is the mean over prompts of a score of answer and reference."""

    def make(_metric: Any, prompts: Sequence[Prompt], answers: Sequence[Response]) -> Sums:
        pairs = zip(answers, _references(prompts), strict=True)
        return averaged([score(answer.text, reference) for answer, reference in pairs], binary=binary)

    return make


def _bleu(_metric: Any, prompts: Sequence[Prompt], answers: Sequence[Response]) -> Sums:
    metric = BLEU(effective_order=True)  # of a sentence; the counts are the corpus' own
    rows = []
    for answer, reference in zip(answers, _references(prompts), strict=True):
        one = metric.sentence_score(answer.text, [reference])
        rows.append([*one.counts, *one.totals, one.sys_len, one.ref_len])
    return Sums(np.array(rows, dtype=np.float64), np.ones(len(rows), dtype=np.bool_), bleu_score)


def _rouge(metric: Rouge, prompts: Sequence[Prompt], answers: Sequence[Response]) -> Sums:
    name = f"rouge{metric.variant.upper()}"
    return averaged(rouge_scores([answer.text for answer in answers], _references(prompts), name))


def _classification(metric: Classification, prompts: Sequence[Prompt], answers: Sequence[Response]) -> Sums:
    wanted = [label_of(reference, metric.labels, whole=True) for reference in _references(prompts)]
    given = [label_of(answer.text, metric.labels) for answer in answers]
    if metric.figure == "accuracy":
        return averaged([float(a == b) for a, b in zip(given, wanted, strict=True)], binary=True)
    labels = np.arange(len(metric.labels))
    given_rows, wanted_rows = (np.array(side)[:, None] == labels for side in (given, wanted))
    rows = np.concatenate([given_rows & wanted_rows, given_rows, wanted_rows], axis=1).astype(np.float64)
    return Sums(rows, np.array(wanted) >= 0, macro_f1)


def _length(metric: Length, prompts: Sequence[Prompt], answers: Sequence[Response]) -> Sums:
    return averaged(
        [
            float(measured(RewardInput(prompt, answer.text, answer.tokens, answer.finished), metric.unit))
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
    )


def _distinct(metric: DistinctNgrams, _prompts: Sequence[Prompt], answers: Sequence[Response]) -> Sums:
    shares = [repeated_share(answer.text, metric.ngram) for answer in answers]
    return averaged([None if share is None else 1 - share for share in shares])


def _repetition(metric: RepeatedNgrams, _prompts: Sequence[Prompt], answers: Sequence[Response]) -> Sums:
    return averaged([repeated_share(answer.text, metric.ngram) or 0.0 for answer in answers])


def _refusal(metric: Refusals, _prompts: Sequence[Prompt], answers: Sequence[Response]) -> Sums:
    own, more = refusal_pattern(), phrase_pattern(metric.phrases) if metric.phrases else None
    beginnings = [answer.text[:BEGINNING] for answer in answers]
    found = [bool(own.search(text) or (more is not None and more.search(text))) for text in beginnings]
    return averaged([float(one) for one in found], binary=True)


def _profanity(metric: Profanity, _prompts: Sequence[Prompt], answers: Sequence[Response]) -> Sums:
    pattern = word_pattern(metric.words, profane=True)
    return averaged([float(pattern.search(answer.text) is not None) for answer in answers], binary=True)


def _readability(metric: Readability, _prompts: Sequence[Prompt], answers: Sequence[Response]) -> Sums:
    formulas = {"flesch_reading_ease": flesch_reading_ease, "flesch_kincaid_grade": flesch_kincaid_grade}
    rows = np.array([text_counts(answer.text) for answer in answers], dtype=np.float64)
    return Sums(rows, rows[:, 1] > 0, formulas[metric.formula])


MAKERS: Mapping[str, Maker] = {
    "bleu": _bleu,
    "rouge": _rouge,
    "exact_match": _each(lambda text, reference: float(same(text, reference)), binary=True),
    "number_match": _each(lambda text, reference: float(last_number(text) == last_number(reference)), binary=True),
    "classification": _classification,
    "length": _length,
    "distinct": _distinct,
    "repetition": _repetition,
    "refusal": _refusal,
    "profanity": _profanity,
    "readability": _readability,
}


def _of_kinds(sums: Sums, metric: Any, prompts: Sequence[Prompt]) -> Sums:
    """The metric where it is asked, and nothing elsewhere."""
    applies = sums.applies & np.array(asked(metric, prompts), dtype=np.bool_)
    return Sums(sums.rows * applies[:, None], applies, sums.value, sums.binary)
