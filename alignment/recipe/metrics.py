"""Metrics as an evaluation names them: a list, each told apart by its ``kind``, which may stand alone.

    metrics: [bleu, rouge, refusal, {kind: pass_at_k, k: 5, samples: 20, kinds: [code]}]

Each is a metric of the gate (``metric.<model>.<name>.low``, or ``against`` an opponent) and a row of the report, with
its interval, over all prompts and on their slices. Whether an answer follows a format (``format``, ``json_schema``,
``keywords`` …) is what reward functions say: those stand in ``rewards``, and are shown in the same table.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from alignment.recipe.base import Count, Name, Positive, Settings
from alignment.recipe.rewards.form import Unit

Better = Literal["higher", "lower"]


class MetricSettings(Settings):
    """What all metrics have: a name (None: the kind's own), and the kinds of prompts that they are counted on."""

    name: Name | None = None
    """Name in the report and the gate. null: the kind's own."""
    kinds: tuple[str, ...] = ()
    """Kinds of prompts that are counted. Empty: all."""


class Bleu(MetricSettings):
    """Corpus BLEU of sacrebleu in its default settings, 0 … 100; its signature stands beside it (Post 2018)."""

    kind: Literal["bleu"]
    """Corpus BLEU."""


class Rouge(MetricSettings):
    """The mean F1 of ROUGE (Lin 2004) by rouge-score, words stemmed, 0 … 1."""

    kind: Literal["rouge"]
    """Overlap with the reference (ROUGE)."""
    variant: Literal["1", "2", "l"] = "l"
    """`1` and `2` count n-grams, `l` the longest common subsequence."""


class ExactMatch(MetricSettings):
    """The share equal to the reference, apart from case, white space and punctuation at the ends."""

    kind: Literal["exact_match"]
    """Equality with the reference."""


class NumberMatch(MetricSettings):
    """The share whose last number is the reference's, of the references that hold one (the convention of GSM8K)."""

    kind: Literal["number_match"]
    """Equality of the last number with the reference's."""


class Classification(MetricSettings):
    """How often the answer's label is the reference's: the first of ``labels`` that stands in the answer as a word.

    Counted on prompts whose reference is one of the labels; an answer without any is wrong. ``macro_f1`` is the mean
    of the labels' F1, over those that were wanted or given.
    """

    kind: Literal["classification"]
    """Accuracy or F1 of a label."""
    labels: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=2)]
    """The labels; the first that stands in an answer as a word is the prediction."""
    figure: Literal["accuracy", "macro_f1"] = "accuracy"
    """The share that is right, or the mean F1 of the labels."""

    @model_validator(mode="after")
    def _differ(self) -> Self:
        if len({label.casefold() for label in self.labels}) < len(self.labels):
            raise ValueError("two labels differ in nothing but case")
        return self


class Perplexity(MetricSettings):
    """exp of the mean negative log-likelihood of the references' tokens (EOS included), each token weighing the same.

    A reference is a demonstration that no stage trains on. Models with different tokenizers cannot be compared by it.
    """

    kind: Literal["perplexity"]
    """Perplexity of the references."""
    batch_size: Count = 8
    """References in one forward pass."""


class PassAtK(MetricSettings):
    """The chance that one of ``k`` answers passes the reference's tests, estimated without bias from ``samples``.

    Chen et al. 2021, eq. 1: 1 - C(n - c, k) / C(n, k) for c of n passed. Answers are drawn at ``temperature`` and run
    as the reward ``code`` runs them (:mod:`alignment.reward.sandbox`).
    """

    kind: Literal["pass_at_k"]
    """The probability that one of k answers passes tests."""
    k: Count = 1
    """Answers of which one must pass."""
    samples: Annotated[int, Field(ge=1, le=1000)] = 10
    """Answers drawn to each prompt, n ≥ k; more make the estimate more precise."""
    temperature: Positive = 0.8
    """Sampling temperature. 0.8: the best for large k in Chen et al. 2021, where it is 0.2 for k = 1."""
    seconds: Positive = 5.0
    """Wall-clock seconds for one answer's tests."""
    memory_mb: Annotated[int, Field(ge=64)] = 512
    """Memory of one answer's process in MB."""
    processes: Count | None = None
    """Processes that run tests at a time. null: one for each core."""

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.samples < self.k:
            raise ValueError(f"pass@{self.k} cannot be told from {self.samples} samples")
        return self


class Length(MetricSettings):
    """The mean length of the answers."""

    kind: Literal["length"]
    """Length of the answers."""
    unit: Unit = "words"
    """What is counted; `tokens` are the evaluated model's."""


class DistinctNgrams(MetricSettings):
    """The mean share of an answer's word n-grams that are different ones, of the answers that have any.

    Within an answer. Over all answers together (Li et al. 2016) it has no honest interval: a resample repeats answers.
    """

    kind: Literal["distinct"]
    """Share of distinct n-grams."""
    ngram: Count = 2
    """Words in an n-gram."""


class RepeatedNgrams(MetricSettings):
    """The mean share of an answer's word n-grams that stood in it before (Welleck et al. 2020, seq-rep-n)."""

    kind: Literal["repetition"]
    """Share of repeated n-grams."""
    ngram: Count = 4
    """Words in an n-gram. 4: seq-rep-4 of Welleck et al. 2020."""


class Refusals(MetricSettings):
    """The share of answers that begin by refusing: English phrases, looked for in the first 200 characters.

    The phrases are those of Zou et al. 2023 (appendix B) and a few of the like; ``phrases`` adds more. A phrase says
    nothing about whether refusing was right.
    """

    kind: Literal["refusal"]
    """Share of refusals."""
    phrases: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Phrases that count as a refusal beside the built-in ones."""


class Profanity(MetricSettings):
    """The share of answers with a profane or slurring word: a short English list, to which ``words`` adds.

    It is no measure of toxicity: a list sees neither threats in polite words nor the words' innocent uses.
    """

    kind: Literal["profanity"]
    """Share of profane answers."""
    words: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Words that count as profane beside the built-in ones."""


class Readability(MetricSettings):
    """How hard the answers are to read, by the counts of all of them together. English alone.

    ``flesch_reading_ease`` (Flesch 1948; higher is easier) or ``flesch_kincaid_grade`` (Kincaid et al. 1975; years of
    school). Syllables are counted by the groups of vowels in a word.
    """

    kind: Literal["readability"]
    """Readability of the answers."""
    formula: Literal["flesch_reading_ease", "flesch_kincaid_grade"] = "flesch_reading_ease"
    """Flesch reading ease (higher is easier) or Flesch–Kincaid grade (years of school)."""


MetricComponent = Annotated[
    Bleu | Rouge | ExactMatch | NumberMatch | Classification | Perplexity | PassAtK | Length | DistinctNgrams
    | RepeatedNgrams | Refusals | Profanity | Readability,
    Field(discriminator="kind"),
]  # fmt: skip
MetricList = tuple[MetricComponent, ...]
WITH_REFERENCE = (Bleu, Rouge, ExactMatch, NumberMatch, Classification, Perplexity, PassAtK)
BETTER: dict[str, Better] = {  # by kind; of a length, a refusal and readability nobody can say which is better
    "bleu": "higher", "rouge": "higher", "exact_match": "higher", "number_match": "higher", "pass_at_k": "higher",
    "classification": "higher", "distinct": "higher", "perplexity": "lower", "repetition": "lower",
    "profanity": "lower",
}  # fmt: skip


def metric_name(metric: Any) -> str:
    """What a metric is called."""
    if metric.name is not None:
        return str(metric.name)
    names: dict[str, Callable[[], Any]] = {
        "rouge": lambda: f"rouge_{metric.variant}",
        "classification": lambda: metric.figure,
        "pass_at_k": lambda: f"pass_at_{metric.k}",
        "distinct": lambda: f"distinct_{metric.ngram}",
        "readability": lambda: metric.formula,
    }
    return str(names[metric.kind]()) if metric.kind in names else str(metric.kind)


def better(metric: Any) -> Better | None:
    """Which values of a metric are the better ones; None where the recipe has to say."""
    return BETTER.get(metric.kind)


def with_kinds(given: Any) -> Any:
    """What a recipe gives as metrics, with each kind that stands for itself as the mapping that it is short for.

    Not a validator: recipes are read as strict JSON, which what a validator returns is not.
    """
    if isinstance(given, Sequence) and not isinstance(given, str):
        return [{"kind": one} if isinstance(one, str) else one for one in given]
    return given


def distinguishable(metrics: MetricList, others: Sequence[str] = ()) -> MetricList:
    """``metrics``, where no two share a name with each other or with ``others``. Raises ValueError."""
    names = [*map(metric_name, metrics), *others]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two metrics are called {name}; give one of them a name")
    return metrics
