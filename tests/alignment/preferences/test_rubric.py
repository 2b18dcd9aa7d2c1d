from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.errors import InputError
from alignment.preferences.rubric import Rubric, load_rubric, score
from alignment.preferences.rubric_measures import ramp, short_answer
from alignment.records import Message, Prompt, Response, Sampling

Make = Callable[..., Any]
QUICKSTART = Path(__file__).parents[3] / "flows" / "recipes" / "quickstart"


def total(rubric: Rubric, prompt: Prompt, text: str, finished: bool = True) -> float:
    response = Response(
        id="r", prompt_id="p", text=text, model="m", sampling=Sampling(), seed=0, tokens=1, finished=finished
    )
    return score(rubric, prompt, response).total


def test_ramp_is_linear_between_its_bounds() -> None:
    assert [ramp(x, zero=5, full=2) for x in (1, 2, 3, 5, 9)] == [1, 1, pytest.approx(2 / 3), 0, 0]
    assert [ramp(x, zero=0.2, full=0.6) for x in (0.1, 0.4, 0.7)] == [0, pytest.approx(0.5), 1]


@pytest.mark.parametrize(
    ("question", "reference", "text", "value"),
    [
        ("What is 6 * 9?", "54", "54", 1.0),
        ("What is 6 * 9?", "54", "6 * 9 = fifty-four.", 1.0),
        ("What is 6 * 9?", "54", "It is 50, 54 or 60.", 0.25),
        ("What is 6 * 9?", "54", "It is 45.", 0.0),
        ("What is 6 * 9?", "54", "", 0.0),
        ("Who wrote Hamlet?", "Shakespeare", "William Shakespeare wrote it.", 1.0),
        ("Who painted it?", "Leonardo da Vinci", "Leonardo did.", 1 / 6),
        ("Good or bad?", "good", "It is good.", 1.0),
        ("Good or bad?", "good", "It is not good.", 0.0),
        ("Good or bad?", "good", "good, bad", 0.5),
        ("Good or bad?", "good", "Bad, or good.", 0.0),
        ("Sort it.", "print('x')", 'Use `print( "x" )`.', 1.0),
        ("Which command?", "git log", "git status", 0.25),
        ("Which sign?", "#", "Use #.", 1.0),
        ("Which sign?", "#", "Use a hash.", 0.0),
        ("Which sign?", "-", "Use - here.", 1.0),
        ("Which city?", "New York.", "It is New York!", 1.0),
    ],
)
def test_short_answer(question: str, reference: str, text: str, value: float) -> None:
    assert short_answer(question, reference, text) == pytest.approx(value)


def test_score_is_the_weighted_mean_scaled_by_what_is_required(prompt: Make, response: Make) -> None:
    rubric = Rubric.model_validate(
        {
            "name": "by hand",
            "criteria": [
                {"name": "a", "text": "t", "measure": "sentences", "weight": 3, "full_at_most": 1, "zero_at": 3},
                {"name": "b", "text": "t", "measure": "finished", "weight": 1, "unpunctuated_words": 1},
                {"name": "c", "text": "t", "measure": "substance", "required": True, "min_words": 8, "count": "words"},
                {"name": "d", "text": "t", "measure": "answer", "weight": 100},
                {"name": "e", "text": "t", "measure": "finished", "weight": 9, "unpunctuated_words": 1, "kinds": ["x"]},
            ],
        }
    )
    result = score(rubric, prompt(), response("Mars is red. It looks rusty"))
    assert result.criteria == {"a": 0.5, "b": 0.0, "c": pytest.approx(6 / 8)}
    assert result.total == pytest.approx(10 * (3 * 0.5 + 0) / 4 * 6 / 8)


GOOD_AND_WORSE = [
    ("What is the capital of Norway?", "question_answering", "Oslo", "Oslo is the capital of Norway."),
    ("What is 17 + 26?", "arithmetic", "43", "17 + 26 = 43"),
    ("Is this review positive or negative? \"Cold soup.\"", "classifying", "negative", "The review is negative."),
    ("Translate into Spanish: The house is white.", "translating", "La casa es blanca.", "La casa es blanca."),
    ("How do I turn \"42\" into an integer in Python?", "code", 'int("42")', 'Call `int("42")`.'),
    ("Describe a stormy sea.", "writing", None, "The stormy sea threw grey waves over the harbour wall."),
    ("My plant has yellow leaves. What should I do?", "chat", None, "Water the plant less; wet roots yellow leaves."),
    ("Sum this up: Camels store fat in their humps, not water. The fat gives them energy when there is no food.",
     "summarising", None, "A camel's hump stores fat, which feeds it when food is short."),
]  # fmt: skip


@pytest.mark.parametrize(("question", "kind", "reference", "good"), GOOD_AND_WORSE)
def test_house_rubric_ranks_sensibly(
    house_rubric: Rubric, prompt: Make, question: str, kind: str, reference: str | None, good: str
) -> None:
    asked = prompt(question, kind, reference)
    rambling = (
        f"Sure! That is a great question. {good} There are many things to be said about this, and it depends on what "
        "you would like to know. In conclusion, there are several aspects to consider. I hope this helps! Feel free "
        "to ask me more, because there is always so much more to learn about it and about the many"
    )
    best = total(house_rubric, asked, good)
    assert best >= 9
    assert total(house_rubric, asked, rambling, finished=False) < best - 2
    honest = total(house_rubric, asked, rambling, finished=False)
    for junk in ("", "   ", "Yes.", "The.", "the the the the the the the the", question, f"{question} {question}"):
        assert total(house_rubric, asked, junk) < min(honest - 0.5, 4), junk


def test_wrong_but_honest_lies_between_right_and_junk(house_rubric: Rubric, prompt: Make) -> None:
    asked = prompt("What is the capital of Norway?", reference="Oslo")
    right, wrong, junk = (
        total(house_rubric, asked, text) for text in ("Oslo.", "Bergen is the capital of Norway.", "I do not know.")
    )
    assert right > wrong + 2
    assert wrong > junk + 2


def test_copied_summary_earns_less_than_own_words(house_rubric: Rubric, prompt: Make) -> None:
    first = "The ferry to Grey Island will not sail today because of the strong winds from the west."
    asked = prompt(f"Sum up: {first} Tickets remain valid for any sailing this week.", "summarising")
    own = "Strong wind stops today's ferry to Grey Island, but tickets stay valid all week."
    assert total(house_rubric, asked, own) > total(house_rubric, asked, first) + 1


RUBRIC = load_rubric(QUICKSTART / "rubric.yaml")


@settings(deadline=None)  # the first example imports sacrebleu
@given(text=st.text(max_size=200), reference=st.none() | st.text(min_size=1, max_size=20), finished=st.booleans())
def test_score_is_between_0_and_10_for_any_text(text: str, reference: str | None, finished: bool) -> None:
    for kind in ("question_answering", "translating", "code", "chat", "unheard_of"):
        asked = Prompt(id="p", messages=(Message(role="user", content="Red or blue?"),), kind=kind, reference=reference)
        assert 0 <= total(RUBRIC, asked, text, finished) <= 10


def write(tmp_path: Path, rubric: object) -> Path:
    path = tmp_path / "rubric.yaml"
    path.write_text(rubric if isinstance(rubric, str) else yaml.safe_dump(rubric), "utf-8")
    return path


def faults(path: Path) -> list[str]:
    with pytest.raises(InputError) as caught:
        load_rubric(path)
    return [str(fault) for fault in caught.value.faults]


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {
            "name": "x",
            "colour": "red",
            "criteria": [
                {"name": "a", "text": "t", "measure": "vibes", "weight": 1},
                {"name": "b", "text": "t", "measure": "sentences", "weight": -1, "full_at_most": 2},
            ],
        },
    )
    lines = faults(path)
    assert len(lines) == 4
    assert all(line.startswith(f"{path}:") for line in lines)
    told = "\n".join(lines)
    for part in (":colour", "vibes", "criteria.1.sentences.zero_at", "criteria.1.sentences.weight"):
        assert part in told


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"criteria": []}, "no criterion has"),
        ({"criteria": [{"name": "a", "text": "t", "measure": "answer"}]}, "needs a weight"),
        ({"criteria": [{"name": "a", "text": "t", "measure": "answer", "required": True}]}, "no criterion has"),
        ({"criteria": [{"name": "a", "text": "t", "measure": "answer", "weight": 1}] * 2}, "same name"),
        ({"clearly_better": 5.0, "much_better": 1.0}, "much_better is below"),
    ],
)  # fmt: skip
def test_a_rubric_must_make_sense(tmp_path: Path, change: dict[str, object], problem: str) -> None:
    good = {"name": "x", "criteria": [{"name": "a", "text": "t", "measure": "answer", "weight": 1}]}
    assert load_rubric(write(tmp_path, good)).name == "x"
    assert any(problem in line for line in faults(write(tmp_path, good | change)))


def test_unreadable_files_are_the_users_fault(tmp_path: Path) -> None:
    assert "cannot be read" in faults(tmp_path / "none.yaml")[0]
    assert f"{tmp_path}/rubric.yaml:2:" in faults(write(tmp_path, "name: x\ncriteria: [}\n"))[0]
    assert faults(write(tmp_path, "just words"))
