"""What can be counted on texts: with a reference answer, and without one."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU

from alignment.data.text import repeated_share, whitespace_words
from alignment.metrics.short_answers import last_number, same


@dataclass(frozen=True, slots=True)
class BleuScore:
    """Corpus BLEU in [0, 100], and the signature that says exactly how it was computed (Post 2018)."""

    score: float
    signature: str


@dataclass(frozen=True, slots=True)
class RougeScores:
    """Mean F1 over the texts, each in [0, 1] (Lin 2004), words stemmed."""

    rouge1: float
    rouge2: float
    rougeL: float  # noqa: N815 - the field's own name


def mean_words(texts: Sequence[str]) -> float:
    """Mean number of words. Raises ValueError without texts."""
    return fmean(len(whitespace_words(text)) for text in _some(texts))


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Different n-grams of words over all n-grams, all texts together (Li et al. 2016). 0 where there are none.

    It falls as the amount of text grows: compare only models that answered the same prompts at similar length.
    """
    grams = [gram for text in _some(texts) for gram in _ngrams(text, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repetition(texts: Sequence[str], n: int = 4) -> float:
    """The mean over texts of :func:`repeated_share`, a text of fewer than n words counting as 0."""
    return fmean(repeated_share(text, n) or 0.0 for text in _some(texts))


def finished_rate(finished: Sequence[bool]) -> float:
    """The share of responses that ended by themselves, not at the token limit. Raises ValueError without responses."""
    if not finished:
        raise ValueError("a metric needs at least one text")
    return sum(finished) / len(finished)


def bleu(texts: Sequence[str], references: Sequence[str]) -> BleuScore:
    """Corpus BLEU by sacrebleu with its default settings, one reference for each text."""
    _pairs(texts, references)
    metric = BLEU()
    score = metric.corpus_score(list(texts), [list(references)]).score
    return BleuScore(float(score), str(metric.get_signature()))


def rouge(texts: Sequence[str], references: Sequence[str]) -> RougeScores:
    """ROUGE-1, -2 and -L by rouge-score, the mean F1 over texts."""
    _pairs(texts, references)
    return RougeScores(*(fmean(rouge_scores(texts, references, name)) for name in ("rouge1", "rouge2", "rougeL")))


def rouge_scores(texts: Sequence[str], references: Sequence[str], name: str) -> list[float]:
    """Each text's F1 of one kind of ROUGE ("rouge1", "rougeL" …)."""
    scorer = RougeScorer([name], use_stemmer=True)
    pairs = zip(texts, references, strict=True)
    return [float(scorer.score(reference, text)[name].fmeasure) for text, reference in pairs]


def exact_match(texts: Sequence[str], references: Sequence[str]) -> float:
    """The share of texts equal to their reference, apart from case, white space and punctuation at the ends."""
    _pairs(texts, references)
    return fmean(same(text, reference) for text, reference in zip(texts, references, strict=True))


def number_match(texts: Sequence[str], references: Sequence[str]) -> float:
    """The share of texts whose last number equals their reference's last number (the convention of GSM8K).

    Numbers are compared by value, so "1,200.0" is "1200". Raises ValueError where a reference holds no number.
    """
    _pairs(texts, references)
    wanted = [last_number(reference) for reference in references]
    if None in wanted:
        raise ValueError(f"reference {wanted.index(None) + 1} holds no number")
    return fmean(last_number(text) == number for text, number in zip(texts, wanted, strict=True))


def _ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    if n < 1:
        raise ValueError(f"n-grams have at least one word, not {n}")
    tokens = whitespace_words(text)
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def _some(texts: Sequence[str]) -> Sequence[str]:
    if not texts:
        raise ValueError("a metric needs at least one text")
    return texts


def _pairs(texts: Sequence[str], references: Sequence[str]) -> None:
    if len(_some(texts)) != len(references):
        raise ValueError(f"{len(texts)} texts need as many references, not {len(references)}")
