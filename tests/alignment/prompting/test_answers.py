"""What is read of an answer, by hand."""

import pytest

from alignment.prompting.answers import read_answer, vote
from alignment.recipe.stages.experiments.benchmark import QuestionTask

NUMBER = QuestionTask(questions="q.jsonl", answer="number")
LABEL = QuestionTask(questions="q.jsonl", answer="label", labels=("billing", "returns"))
TEXT = QuestionTask(questions="q.jsonl", answer="text")


@pytest.mark.parametrize(
    ("task", "text", "direct", "reasoned"),
    [
        (NUMBER, "44", "44", "44"),
        (NUMBER, "It is 1,200.0 in all.", "1200", "1200"),
        (NUMBER, "7 + 37 = 44. Answer: 44", "44", "44"),
        (NUMBER, "Answer: 44\nI began with 7.", "7", "7"),  # the last number after the marker
        (NUMBER, "answer: 3 ANSWER: 4 apples", "4", "4"),  # the last marker, whatever its case
        (NUMBER, "There is none.", None, None),
        (NUMBER, "-3 and 100", "100", "100"),
        (LABEL, "Billing.", "billing", None),
        (LABEL, "No returns, it is billing. Answer: billing", "returns", "billing"),
        (LABEL, "Answer:\n\nreturns\nor billing", "returns", "returns"),
        (LABEL, "rebilling", None, None),  # no word of its own
        (LABEL, "Answer:", None, None),
        (TEXT, "  Paris! ", "paris", None),
        (TEXT, "It is in France. Answer: Paris.", "it is in france. answer: paris", "paris"),
        (TEXT, "...", None, None),
    ],
)
def test_what_is_read(task: QuestionTask, text: str, direct: str | None, reasoned: str | None) -> None:
    assert read_answer(text, task, reasoning=False) == direct
    assert read_answer(text, task, reasoning=True) == reasoned


def test_equal_numbers_are_equal_however_they_are_written() -> None:
    assert len({read_answer(text, NUMBER, reasoning=False) for text in ("1200", "1,200", "1200.00", "is 1200.")}) == 1
    assert read_answer("100", NUMBER, reasoning=False) == "100"  # and not 1E+2


@pytest.mark.parametrize(
    ("answers", "wanted"),
    [
        (["3", "4", "4"], "4"),
        (["3", "4"], "3"),  # equally common: the one drawn first
        ([None, None, "5"], "5"),  # what says nothing has no vote
        ([None], None),
        ([], None),
    ],
)
def test_the_commonest_answer_counts(answers: list[str | None], wanted: str | None) -> None:
    assert vote(answers) == wanted
