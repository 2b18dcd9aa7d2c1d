"""Metrics against the libraries that define them, published examples, and figures worked by hand."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from sacrebleu.metrics import BLEU
from sklearn.metrics import f1_score

from alignment.errors import StageError
from alignment.evaluation.bootstrap import estimate
from alignment.metrics.measure import macro_f1, measure, require_prompts
from alignment.metrics.model_metrics import pass_at_k
from alignment.metrics.readability import flesch_kincaid_grade, flesch_reading_ease, text_counts
from alignment.metrics.short_answers import label_of
from alignment.recipe.metrics import MetricList, metric_name, with_kinds
from alignment.recipe.stages.evaluate import EvaluateStage
from alignment.records import Message, Prompt, Response, Sampling


def metrics_of(*given: Any) -> MetricList:
    return EvaluateStage.model_validate({"kind": "evaluate", "model": "m", "metrics": with_kinds(given)}).metrics


def prompts_of(references: Sequence[str | None], kinds: Sequence[str] | None = None) -> list[Prompt]:
    asked = (Message(role="user", content="Well?"),)
    return [
        Prompt(id=str(i), messages=asked, reference=reference, kind=kinds[i] if kinds else "general")
        for i, reference in enumerate(references)
    ]


def answers_of(texts: Sequence[str]) -> list[Response]:
    return [
        Response(id=str(i), prompt_id=str(i), text=text, model="m@1:0", sampling=Sampling(), seed=0,
                 tokens=len(text.split()) + 1, finished=True)
        for i, text in enumerate(texts)
    ]  # fmt: skip


def value_of(metric: Any, texts: Sequence[str], references: Sequence[str | None] | None = None) -> float:
    (sums,) = measure(metrics_of(metric), prompts_of(references or [None] * len(texts)), answers_of(texts)).values()
    return estimate(sums).value


SAID = ["the cat sat on the mat today", "a dog", "no match here", "", "the quick brown fox jumps over the lazy dog"]
MEANT = [
    "the cat sat on the mat",
    "a dog barks loudly",
    "something else entirely",
    "words",
    "the quick brown fox jumped",
]


def test_bleu_is_sacrebleus_on_every_subset() -> None:
    """Every subset: those without a match of some order are where smoothing and its exceptions show."""
    sums = measure(metrics_of("bleu"), prompts_of(MEANT), answers_of(SAID))["bleu"]
    for size in range(1, len(SAID) + 1):
        for places in itertools.combinations(range(len(SAID)), size):
            reference = BLEU().corpus_score([SAID[i] for i in places], [[MEANT[i] for i in places]]).score
            assert float(sums.value(sums.rows[list(places)].sum(axis=0))) == pytest.approx(reference)


def test_references_are_matched() -> None:
    references = ["Paris.", "12", "4", None]
    texts = ["paris", "It is 12", "5", "x"]
    assert value_of("exact_match", texts, references) == pytest.approx(1 / 3)
    assert value_of("number_match", texts, references) == pytest.approx(1 / 2)  # "Paris." holds no number
    assert value_of("rouge", ["a b c", "x"], ["a b c", None]) == 1.0
    assert value_of({"kind": "rouge", "variant": "1"}, ["a b c d"], ["a b"]) == pytest.approx(2 * 0.5 / 1.5)


def test_labels_are_the_first_that_stands_as_a_word() -> None:
    labels = ("yes", "no", "not sure")
    assert [label_of(text, labels) for text in ("Yes, it is", "I know: no", "Not sure, yes", "maybe")] == [0, 1, 2, -1]
    texts, references = ["yes", "no way", "yes", "hm", "No."], ["Yes", "no", "no", "no", "out of the labels"]
    classification = {"kind": "classification", "labels": ["yes", "no"]}
    assert value_of(classification, texts, references) == 2 / 4
    found = value_of({**classification, "figure": "macro_f1"}, texts, references)
    meant, said = ["yes", "no", "no", "no"], ["yes", "no", "yes", "none"]
    by_sklearn = f1_score(meant, said, labels=["yes", "no"], average="macro")
    assert found == pytest.approx(by_sklearn)


def test_a_label_that_nobody_meant_or_said_is_no_part_of_macro_f1() -> None:
    hits, given, wanted = [2.0, 0.0, 0.0], [2.0, 1.0, 0.0], [3.0, 0.0, 0.0]
    assert float(macro_f1(np.array(hits + given + wanted))) == pytest.approx((4 / 5 + 0) / 2)


@pytest.mark.parametrize(("n", "passed"), [(1, 0), (4, 0), (5, 2), (6, 6), (7, 1)])
def test_pass_at_k_is_the_share_of_draws_with_a_pass(n: int, passed: int) -> None:
    outcomes = [True] * passed + [False] * (n - passed)
    for k in range(1, n + 1):
        draws = list(itertools.combinations(outcomes, k))
        assert pass_at_k(n, passed, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_k_is_the_formula_of_the_paper() -> None:
    """Chen et al. 2021, figure 3: the numerically stable form of equation 1."""
    for n, passed, k in [(200, 13, 100), (200, 1, 1), (100, 99, 2)]:
        stable = 1.0 if n - passed < k else 1.0 - np.prod(1.0 - k / np.arange(n - passed + 1, n + 1))
        assert pass_at_k(n, passed, k) == pytest.approx(stable)
    with pytest.raises(ValueError, match="cannot be told"):
        pass_at_k(2, 1, 3)


@pytest.mark.parametrize(
    ("text", "counts", "ease"),
    [  # the examples of Wikipedia's article on the tests, with its figures
        ("The cat sat on the mat.", (1, 6, 6), 116),
        ("This sentence, taken as a reading passage unto itself, is being used to prove a point.", (1, 16, 23), 69),
        ("The Australian platypus is seemingly a hybrid of a mammal and reptilian creature.", (1, 13, 24), 37.5),
    ],
)
def test_readability_of_published_examples(text: str, counts: tuple[int, int, int], ease: float) -> None:
    assert text_counts(text) == counts
    assert float(flesch_reading_ease(np.array(counts, dtype=float))) == pytest.approx(ease, abs=0.6)
    assert value_of("readability", [text, ""]) == pytest.approx(ease, abs=0.6)  # an empty answer counts nothing


def test_grade_by_hand() -> None:
    assert float(flesch_kincaid_grade(np.array([1.0, 13.0, 24.0]))) == pytest.approx(0.39 * 13 + 11.8 * 24 / 13 - 15.59)


def test_refusals_and_profanity_are_told_by_their_words() -> None:
    refusing = [
        "I'm sorry, but I can’t help.",
        "As an AI language model, I have no opinion.",
        "I am unable\nto do that.",
    ]
    answering = ["Sorry seems to be the hardest word.", "You can not only swim here.", "x" * 300 + " I cannot"]
    assert value_of("refusal", refusing) == 1.0
    assert value_of("refusal", answering) == 0.0
    assert value_of({"kind": "refusal", "phrases": ["that is private"]}, ["That is private!"]) == 1.0
    assert value_of("profanity", ["What the FUCK?", "Scunthorpe is a class act in Essex.", "ok", "a shitty day"]) == 0.5
    assert value_of({"kind": "profanity", "words": ["frak"]}, ["frak you"]) == 1.0


def test_lengths_and_ngrams() -> None:
    texts = ["a b a b", "a", ""]
    assert value_of("length", texts) == pytest.approx(5 / 3)
    assert value_of({"kind": "length", "unit": "tokens"}, texts) == pytest.approx((5 + 2 + 1) / 3)
    assert value_of("distinct", texts) == pytest.approx(2 / 3)  # "a b", "b a", "a b"; the others have no pair
    assert value_of({"kind": "repetition", "ngram": 2}, texts) == pytest.approx(1 / 9)


def test_kinds_and_references_say_where_a_metric_counts() -> None:
    prompts = prompts_of(["4", "5", None], ["sums", "talk", "sums"])
    metrics = metrics_of({"kind": "exact_match", "kinds": ["sums"]}, {"kind": "length", "kinds": ["talk"]})
    found = measure(metrics, prompts, answers_of(["4", "no", "x"]))
    assert {name: estimate(one).n for name, one in found.items()} == {"exact_match": 1, "length": 1}
    with pytest.raises(StageError, match="bleu has nothing to count: none of 1 prompts has a reference"):
        require_prompts(metrics_of("length", "bleu"), prompts[2:])


def test_names_tell_metrics_apart() -> None:
    names = [*map(metric_name, metrics_of("rouge", {"kind": "rouge", "variant": "2"}, {"kind": "pass_at_k", "k": 5},
                                          {"kind": "length", "name": "words"}))]  # fmt: skip
    assert names == ["rouge_l", "rouge_2", "pass_at_5", "words"]
    for same in (["bleu", "bleu"], [{"kind": "length", "name": "exact"}]):
        stage = {"kind": "evaluate", "model": "m", "metrics": with_kinds(same), "rewards": [{"kind": "exact"}]}
        with pytest.raises(ValueError, match="two metrics are called"):
            EvaluateStage.model_validate(stage)
