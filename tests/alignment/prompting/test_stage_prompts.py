"""Prompts of a stage in a form: expected prompts written by hand, what counts of what was written, and leaks."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from alignment.digests import prompt_id
from alignment.errors import InputError, StageError
from alignment.prompting.stage_prompts import put_prompts, settled
from alignment.recipe.stages.evaluate import EvaluateStage
from alignment.recipe.stages.prompting import Prompting
from alignment.recipe.stages.sample import SampleStage
from alignment.records import Message, Prompt, Response, Sampling

ROWS = [
    {"question": "What is 2 + 3?", "answer": "5", "reasoning": "2 and 3 are 5."},
    {"question": "How many apples are left of 9 if 4 are eaten?", "answer": "5", "reasoning": "9 - 4 = 5."},
    {"question": "How far is the moon?", "answer": "384400", "reasoning": "It is known."},
]


def asked(*turns: str) -> Prompt:
    roles = ("user", "assistant")
    messages = tuple(Message(role=roles[place % 2], content=turn) for place, turn in enumerate(turns))  # type: ignore[arg-type]
    return Prompt(id=prompt_id(messages), messages=messages)


def solved(folder: Path, rows: Sequence[dict[str, Any]] = ROWS) -> Path:
    path = folder / "solved.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def said(prompt: Prompt) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in prompt.messages]


def test_reasoned_examples_stand_before_the_question_nearest_last(tmp_path: Path) -> None:
    """Of the three, two share words with the question: `how`, `many`, `apples`, `are`, `left` and `how`, `the`."""
    form = Prompting(shots=2, choose="nearest", reasoning=True, examples="solved.jsonl", system="You count.",
                     reasoning_instruction='Think. End with "{marker}".', marker="So:")  # fmt: skip
    question = asked("How many apples are left in the basket?")
    [put] = put_prompts(form, [question], solved(tmp_path), 0)
    assert put.id == question.id  # what is trained on, judged and measured is the plain prompt
    assert said(put) == [
        ("system", "You count."),
        ("user", 'How far is the moon?\nThink. End with "So:".'),
        ("assistant", "It is known.\nSo: 384400"),
        ("user", 'How many apples are left of 9 if 4 are eaten?\nThink. End with "So:".'),
        ("assistant", "9 - 4 = 5.\nSo: 5"),
        ("user", 'How many apples are left in the basket?\nThink. End with "So:".'),
    ]


def test_demonstrations_are_examples_too(tmp_path: Path) -> None:
    rows = [{"prompt": "Name a colour.", "completion": "Red."}, {"prompt": "Name a bird.", "completion": "An owl."}]
    form = Prompting(shots=1, examples="solved.jsonl", instruction="One word.")
    [put] = put_prompts(form, [asked("Hello", "Hi!", "Name a tree.")], solved(tmp_path, rows), 0)
    assert said(put) == [
        ("user", "Name a colour.\nOne word."),
        ("assistant", "Red."),
        ("user", "Hello"),
        ("assistant", "Hi!"),
        ("user", "Name a tree.\nOne word."),
    ]


@pytest.mark.parametrize(
    "turns", [("what is  2 + 3?",), ("Hello", "Hi!", "What is 2 + 3?"), ("What is 2 + 3?", "5", "Why?")]
)
def test_an_example_is_not_what_is_asked(turns: tuple[str, ...], tmp_path: Path) -> None:
    """By its opening, which the split goes by, or by what is asked last, whatever the case and spacing."""
    form = Prompting(shots=1, examples="solved.jsonl")
    with pytest.raises(StageError, match="the example of row 1 is asked itself"):
        put_prompts(form, [asked("Another?"), asked(*turns)], solved(tmp_path), 0)


@pytest.mark.parametrize(
    ("rows", "form", "words"),
    [
        (ROWS[:1], {"shots": 2}, "1 examples, and 2 are shown"),
        ([{"question": "a?", "answer": "b"}], {"shots": 1, "reasoning": True}, "no reasoning, which is shown"),
        ([{"messages": [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"), ("user", "c"))],
           "reference": "d"}], {"shots": 1}, "an example of several turns"),
    ],
)  # fmt: skip
def test_examples_that_cannot_be_shown_are_refused(rows: Any, form: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        put_prompts(Prompting(examples="solved.jsonl", **form), [asked("x?")], solved(tmp_path, rows), 0)


def written(*texts: str) -> list[Response]:
    return [
        Response(id=f"r{place}", prompt_id="p", text=text, model="m", sampling=Sampling(), seed=place, tokens=4)
        for place, text in enumerate(texts)
    ]


@pytest.mark.parametrize(
    ("form", "texts", "kept", "read"),
    [
        ({"answer": "number"}, ("1 and 2. Answer: 3", "So 4.\nanswer: 3.0", "Answer: 4"), "3", ("3", "3", "4")),
        ({"answer": "text"}, ("Hm. Answer: An Owl.\nBye", "Answer: a cat", "Answer: an owl"), "An Owl.",
         ("an owl", "a cat", "an owl")),
        ({"answer": "label", "labels": ("good", "bad")}, ("Answer: fine", "bad? Answer: good", "Answer: fine"), "good",
         (None, "good", None)),
        ({"answer": "text"}, ("I do not know", "Nor do I", "Hm"), "", (None, None, None)),
    ],
)  # fmt: skip
def test_the_commonest_answer_is_the_response(form: Any, texts: Any, kept: str, read: Any) -> None:
    settings = Prompting(reasoning=True, votes=3, keep="answer", **form)
    [response], [whole] = settled(settings, [written(*texts)])
    assert (response.id, response.text, response.tokens) == ("r0", kept, 12)
    assert (whole.response_id, whole.texts, whole.read) == ("r0", texts, read)


def test_a_reasoning_may_be_kept_whole() -> None:
    [response], [whole] = settled(Prompting(reasoning=True), [written("Well. Answer: 3")])
    assert response.text == "Well. Answer: 3"
    assert whole.texts == ("Well. Answer: 3",)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "it puts prompts as they are"),
        ({"shots": 2}, "give both, or neither"),
        ({"examples": "e.jsonl", "system": "x"}, "give both, or neither"),
        ({"reasoning": True, "votes": 3}, "set keep to answer"),
        ({"keep": "answer"}, "leaves reasoning out, and none is asked for"),
        ({"reasoning": True, "answer": "number"}, "answer=number is read where keep is answer"),
        ({"reasoning": True, "keep": "answer", "answer": "label"}, "labels belong to answer: label"),
    ],
)
def test_a_form_that_does_nothing_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Prompting.model_validate(settings)


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        (SampleStage, {"kind": "sample", "best_of": 2, "reward": "r"}, "best_of scores plain prompts"),
        (EvaluateStage, {"kind": "evaluate", "model": "base", "metrics": [{"kind": "pass_at_k", "k": 1, "samples": 2}]},
         "pass_at_k draws answers of its own"),
    ],
)  # fmt: skip
def test_stages_say_what_a_form_cannot_be_with(kind: Any, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        kind.model_validate({**settings, "prompting": {"reasoning": True}})
