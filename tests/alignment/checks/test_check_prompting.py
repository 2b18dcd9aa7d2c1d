"""Forms of prompts as the check sees them: examples that leak, are not there or leave no room, and those of judges."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from alignment.data.split import is_held_out

Write = Callable[[str, Iterable[Any]], Path]
Checker = Callable[..., list[str]]
WORDS = [f"p{n}" for n in range(40)]
TRAIN = [word for word in WORDS if not is_held_out(word, 0.2)]
HELD_OUT = [word for word in WORDS if is_held_out(word, 0.2)]
SAMPLE = {"kind": "sample", "sampling": {"max_new_tokens": 4}}
EVALUATE = {"kind": "evaluate", "model": "base", "against": [], "metrics": ["refusal"],
            "sampling": {"temperature": 0.0, "max_new_tokens": 4}}  # fmt: skip


def faults(checked: Checker, write: Write, stage: dict[str, Any], shown: list[str], **form: Any) -> list[str]:
    write("prompts.jsonl", [{"prompt": word} for word in WORDS])
    write("shown.jsonl", [{"prompt": word, "reference": "a"} for word in shown])
    asked = {**stage, "prompting": {"examples": "shown.jsonl", "shots": 1, **form}}
    return checked(data={"prompts": "prompts.jsonl"}, stages={"asking": asked})


@pytest.mark.parametrize(
    ("stage", "leaking"),
    [(SAMPLE, TRAIN[3]), (SAMPLE, HELD_OUT[0]), (EVALUATE, HELD_OUT[0]), (EVALUATE | {"split": "train"}, TRAIN[3])],
)
def test_an_example_that_is_asked_or_held_out_is_a_fault(
    checked: Checker, write: Write, stage: dict[str, Any], leaking: str
) -> None:
    [fault] = faults(checked, write, stage, ["x", leaking.upper()])
    assert fault.startswith("shown.jsonl:2: ")
    assert f"asking asks '{leaking.upper()}' itself, or it is held out" in fault


def test_an_evaluation_may_show_what_is_trained_on(checked: Checker, write: Write) -> None:
    assert faults(checked, write, EVALUATE, [TRAIN[3]]) == []


def test_examples_that_are_too_few_are_a_fault(checked: Checker, write: Write) -> None:
    [fault] = faults(checked, write, SAMPLE, ["x"], shots=2)
    assert "1 examples, and 2 are shown" in fault


def test_a_form_that_leaves_no_room_is_a_fault(checked: Checker, write: Write) -> None:
    """Plain prompts fit into the context of 64 tokens, each of a byte; with an example of 40 letters they do not."""
    [fault] = faults(checked, write, SAMPLE, ["x" * 40])
    assert "stages.asking.prompting: 4 new tokens after the longest prompt's" in fault


def test_examples_that_are_not_there_are_a_fault(checked: Checker, write: Write) -> None:
    [fault] = faults(checked, write, SAMPLE, ["x"], examples="nowhere.jsonl")
    assert "nowhere.jsonl" in fault


def test_a_judges_example_is_no_prompt_that_is_judged(checked: Checker, write: Write) -> None:
    write("prompts.jsonl", [{"prompt": word} for word in WORDS])
    examples = [{"prompt": "x", "a": "1", "b": "2", "verdict": "A"},
                {"prompt": HELD_OUT[0], "a": "1", "b": "2", "verdict": "B"}]  # fmt: skip
    judge = {"kind": "label_probabilities", "model": "base", "question": "?", "examples": examples}
    [fault] = [
        one
        for one in checked(data={"prompts": "prompts.jsonl"}, stages={"judged": EVALUATE | {"judge": judge}})
        if "prompt of the data" in one
    ]
    assert "stages.judged.judge.examples.1.prompt" in fault
