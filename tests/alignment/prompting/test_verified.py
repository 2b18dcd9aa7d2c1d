"""Answers that a checker runs on: code and verifiable instructions, in a benchmark."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from alignment.errors import InputError
from alignment.prompting.answers import VERIFIED
from alignment.prompting.questions import parse_question
from alignment.prompting.tasks import load_tasks
from alignment.prompting.verified import readings
from alignment.recipe.stages.experiments.benchmark import BenchmarkStage, QuestionTask

needs_checkers = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("lm_eval", "langdetect")),
    reason="the checkers come with pip install 'rlhf-flows[ifeval]'",
)
CODE = QuestionTask(questions="code.jsonl", answer="code")
TOLD = QuestionTask(questions="told.jsonl", answer="instructions")


def stage(**changes: Any) -> BenchmarkStage:
    tasks = {"told": {"questions": "told.jsonl", "answer": "instructions"}}
    return BenchmarkStage.model_validate({"kind": "benchmark", "tasks": tasks} | changes)


def test_code_is_right_where_the_tests_pass() -> None:
    question = parse_question({"prompt": "Write double(n).", "reference": "assert double(2) == 4"})
    whole, fenced = "def double(n):\n    return 2 * n", "```python\ndef double(n):\n    return n + n\n```"
    texts = [whole, fenced, "def double(n): pass", ""]
    assert readings(CODE, [(question, texts)], reasoning=False) == [(VERIFIED, VERIFIED, None, None)]


@needs_checkers
def test_instructions_are_followed_all_or_the_answer_is_wrong() -> None:
    row = {
        "instruction_id_list": ["punctuation:no_comma", "startend:end_checker"],
        "kwargs": [{}, {"end_phrase": "Over."}],
    }
    question = parse_question({"prompt": "Speak.", **row})
    texts = ["All is well. Over.", "All, is well. Over.", "All is well.", "Well:\nAll is well. Over.\nYours, I."]
    assert readings(TOLD, [(question, texts)], reasoning=False) == [(VERIFIED, None, None, None)]
    loosely = TOLD.model_copy(update={"loose": True})
    assert readings(loosely, [(question, texts)], reasoning=False) == [(VERIFIED, None, None, VERIFIED)]


@needs_checkers
def test_rows_that_cannot_be_checked_are_all_named(tmp_path: Path) -> None:
    rows = [
        {"prompt": "One.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
        {"prompt": "Two.", "reference": "two"},
        {"prompt": "Three.", "instruction_id_list": ["length_constraints:number_words"], "kwargs": [{"num_words": 3}]},
        {"prompt": "Four.", "instruction_id_list": ["punctuation:none"], "kwargs": [{}]},
    ]
    file = tmp_path / "told.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    with pytest.raises(InputError) as refused:
        load_tasks(stage(), {"told.questions": file})
    lines = str(refused.value).splitlines()
    assert [line.partition(";")[0] for line in lines] == [
        f"{file}:2:reference: the reference holds no instructions",
        f"{file}:3:kwargs: length_constraints:number_words wants relation",
        f"{file}:4:kwargs: IFEval knows no instruction 'punctuation:none'",
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"forms": {"thought": {"reasoning": True}}}, "forms.thought.reasoning needs an answer that can be read"),
        ({"forms": {"voted": {"votes": 3}}}, "forms.voted.votes needs an answer that can be read"),
        (
            {"tasks": {"sums": {"questions": "a", "answer": "number", "loose": True}}},
            "loose belongs to answer: instructions",
        ),
        ({"tasks": {"code": {"questions": "a", "answer": "code", "examples": "b"}}}, "an example could show"),
    ],
)
def test_settings_that_do_not_fit(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        stage(**changes)
