"""Prompts in several forms: by hand, and the nearest examples by BM25's own formula."""

import math
import re
from collections import Counter

import pytest
from pydantic import ValidationError

from alignment.prompting.forms import put
from alignment.prompting.questions import Question, parse_question
from alignment.prompting.shots import nearest
from alignment.recipe.stages.experiments.benchmark import BenchmarkStage, QuestionTask
from alignment.recipe.stages.prompting import PromptForm

TASK = QuestionTask(
    questions="q.jsonl", examples="e.jsonl", answer="number", system="You sum.", instruction="Number only.",
    reasoning_instruction='Think, then "{marker}".',
)  # fmt: skip
TEXTS = (
    "What is 2 + 3?",
    "How many apples are left of 9 if 4 are eaten?",
    "How many apples and pears are there?",
    "What is 9 - 4?",
    "How far is the moon?",
)
EXAMPLES = [
    parse_question({"prompt": text, "reference": str(place), "reasoning": f"Because {place}."})
    for place, text in enumerate(TEXTS)
]
QUESTION = parse_question({"prompt": "How many apples are left?", "reference": "5"})


def said(form: PromptForm, question: Question = QUESTION, seed: int = 0) -> list[tuple[str, str]]:
    [(_question, prompt)] = put(TASK, form, [question], EXAMPLES, seed)
    assert prompt.reference == question.answer
    return [(message.role, message.content) for message in prompt.messages]


def test_zero_shot() -> None:
    assert said(PromptForm()) == [("system", "You sum."), ("user", "How many apples are left?\nNumber only.")]


def test_solved_examples_stand_before_the_question_as_turns() -> None:
    assert said(PromptForm(shots=2)) == [
        ("system", "You sum."),
        ("user", "What is 2 + 3?\nNumber only."),
        ("assistant", "0"),
        ("user", "How many apples are left of 9 if 4 are eaten?\nNumber only."),
        ("assistant", "1"),
        ("user", "How many apples are left?\nNumber only."),
    ]


def test_reasoning_is_asked_for_and_shown() -> None:
    assert said(PromptForm(shots=1, reasoning=True)) == [
        ("system", "You sum."),
        ("user", 'What is 2 + 3?\nThink, then "Answer:".'),
        ("assistant", "Because 0.\nAnswer: 0"),
        ("user", 'How many apples are left?\nThink, then "Answer:".'),
    ]


def test_a_question_keeps_its_own_system_message_and_turns() -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "1 + 1?"},
    ]
    question = parse_question({"messages": turns, "reference": "2"})
    assert [content for _role, content in said(PromptForm(), question)] == [
        "Be brief.", "Hello", "Yes?", "1 + 1?\nNumber only.",
    ]  # fmt: skip


def test_random_examples_are_drawn_for_each_question_by_the_seed() -> None:
    form = PromptForm(shots=3, choose="random")
    others = [parse_question({"prompt": f"What is {n} + 1?", "reference": str(n + 1)}) for n in range(20)]
    drawn = [said(form, other)[1:-1] for other in others]
    assert drawn == [said(form, other)[1:-1] for other in others]
    assert len({str(one) for one in drawn}) > 10  # of 60 orders
    assert drawn != [said(form, other, seed=1)[1:-1] for other in others]
    assert all(len({content for role, content in one if role == "user"}) == 3 for one in drawn)


def bm25(question: str, texts: tuple[str, ...]) -> list[float]:
    """Robertson and Zaragoza 2009 with Lucene's idf, k1 = 1.5, b = 0.75, word by word."""
    words = [re.findall(r"\w+", text.lower()) for text in texts]
    mean = sum(map(len, words)) / len(words)
    scores = []
    for own in words:
        counts, score = Counter(own), 0.0
        for word in re.findall(r"\w+", question.lower()):
            df = sum(word in other for other in words)
            if df:
                idf = math.log(1 + (len(words) - df + 0.5) / (df + 0.5))
                score += idf * counts[word] / (counts[word] + 1.5 * (1 - 0.75 + 0.75 * len(own) / mean))
        scores.append(score)
    return scores


@pytest.mark.parametrize("text", ["How many apples are left?", "What is 9 + 3?", "the moon", "xyzzy"])
def test_the_nearest_examples_are_those_of_the_highest_bm25(text: str) -> None:
    scores = bm25(text, TEXTS)
    order = sorted(range(len(TEXTS)), key=lambda place: (-scores[place], place))[:3]
    question = parse_question({"prompt": text, "reference": "1"})
    assert [example.answer for example in nearest(3, EXAMPLES)(question)] == [str(place) for place in order[::-1]]


def test_gsm8k_rows_are_read_as_they_are() -> None:
    question = parse_question({"question": "2 pens at 3?", "answer": "Each costs <<2*3=6>>6.\n#### 6"})
    assert (question.text, question.reasoning, question.answer) == ("2 pens at 3?", "Each costs <<2*3=6>>6.", "6")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"forms": {"few": {"shots": 2}}}, "forms.few shows 2 examples, and tasks.sums has none"),
        ({"forms": {"hot": {"temperature": 0.5}}}, "temperature does nothing without votes: 2 or more"),
        ({"forms": {"far": {"choose": "nearest"}}}, "choose does nothing without shots: 1 or more"),
        ({"models": ["base", "base"]}, "a model stands twice"),
        ({"tasks": {"sums": {"questions": "q", "answer": "label"}}}, "labels belong to answer: label"),
        ({"tasks": {"sums": {"questions": "q", "answer": "number", "labels": ["a", "b"]}}}, "labels belong to"),
        ({"tasks": {"sums": {"questions": "q", "answer": "label", "labels": ["a", "A"]}}}, "differ in more than case"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(changes: dict[str, object], words: str) -> None:
    given = {"kind": "benchmark", "tasks": {"sums": {"questions": "q.jsonl", "answer": "number"}}} | changes
    with pytest.raises(ValidationError, match=re.escape(words)):
        BenchmarkStage.model_validate(given)
