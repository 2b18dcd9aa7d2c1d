"""The quickstart's own data: enough of it, right, varied, and in the house style."""

import ast
import json
import re
from collections import Counter
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from alignment.data.text import sentences, words
from alignment.preferences.rubric import Rubric, load_rubric, score
from alignment.records import Message, Prompt, Response, Sampling

FOLDER = Path(__file__).parents[2] / "flows" / "recipes" / "quickstart"
KINDS = {
    "question_answering", "summarising", "translating", "code", "arithmetic", "writing", "classifying", "chat",
}  # fmt: skip


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / name).read_text("utf-8").splitlines()]


PROMPTS = rows("prompts.jsonl")
HELD_OUT = rows("held_out.jsonl")
ASKED = PROMPTS + HELD_OUT
DEMONSTRATIONS = rows("demonstrations.jsonl")


@pytest.fixture(scope="module")
def rubric() -> Rubric:
    return load_rubric(FOLDER / "rubric.yaml")


def points(rubric: Rubric, row: dict[str, Any], text: str) -> float:
    prompt = Prompt(
        id="p", messages=(Message(role="user", content=row["prompt"]),), kind=row["kind"],
        reference=row.get("reference"),
    )  # fmt: skip
    response = Response(
        id="r", prompt_id="p", text=text, model="m", sampling=Sampling(), seed=0, tokens=1, finished=True
    )
    return score(rubric, prompt, response).total


def demonstration(row: dict[str, Any]) -> tuple[dict[str, Any], str]:
    question, answer = (message["content"] for message in row["messages"])
    return {"prompt": question, "kind": row["kind"]}, answer


def test_there_is_enough_of_every_kind() -> None:
    assert len(PROMPTS) >= 256
    assert len(DEMONSTRATIONS) >= 104
    assert len(HELD_OUT) >= 120
    for data, least in ((PROMPTS, 32), (HELD_OUT, 15), (DEMONSTRATIONS, 13)):
        counts = Counter(row["kind"] for row in data)
        assert set(counts) == KINDS
        assert min(counts.values()) >= least


def test_rows_hold_the_columns_and_no_others() -> None:
    for row in ASKED:
        assert set(row) in ({"prompt", "kind"}, {"prompt", "kind", "reference"})
        assert all(isinstance(value, str) and value == value.strip() and value for value in row.values())
    for row in DEMONSTRATIONS:
        assert set(row) == {"messages", "kind"}
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]


def test_nothing_is_said_twice() -> None:
    """No two prompts, held-out ones and demonstrations' included, share two thirds of their words."""
    asked = [row["prompt"] for row in ASKED] + [demonstration(row)[0]["prompt"] for row in DEMONSTRATIONS]
    bags = [(text, set(re.findall(r"\w+|[^\w\s]", text.lower()))) for text in asked]
    near = [(one, other) for (one, a), (other, b) in combinations(bags, 2) if len(a & b) / len(a | b) > 2 / 3]
    assert near == []
    answers = [demonstration(row)[1] for row in DEMONSTRATIONS]
    assert len(set(answers)) == len(answers)


def test_prompts_are_short() -> None:
    limit = {"summarising": 80}
    assert all(len(words(row["prompt"])) <= limit.get(row["kind"], 35) for row in ASKED)


def test_short_answers_have_references() -> None:
    """Without a reference the rubric cannot tell right from wrong; open kinds have none."""
    for kind in ("arithmetic", "classifying", "translating"):
        assert all("reference" in row for row in ASKED if row["kind"] == kind)
    for kind in ("summarising", "writing", "chat"):
        assert not any("reference" in row for row in ASKED if row["kind"] == kind)


def calculate(expression: str) -> float:
    """Numbers, + - * / and brackets, by Python's own grammar."""

    def value(node: ast.expr) -> float:
        match node:
            case ast.Constant(value=int(number)):
                return number
            case ast.BinOp(left=left, op=op, right=right):
                one, other = value(left), value(right)
                by_op = {ast.Add: one + other, ast.Sub: one - other, ast.Mult: one * other, ast.Div: one / other}
                return by_op[type(op)]
        raise ValueError(expression)

    return value(ast.parse(expression, mode="eval").body)


SUM = re.compile(r"(?:What is|Calculate|Work out|Multiply|Divide) ([\d\s()+*/-]*\d[\d\s()+*/-]*?)[?.]")


def test_sums_are_right() -> None:
    for data, least in ((PROMPTS, 12), (HELD_OUT, 6)):
        checked = 0
        for row in data:
            found = SUM.fullmatch(row["prompt"])
            if row["kind"] == "arithmetic" and found and re.search(r"[+*/-]", found[1]):
                assert calculate(found[1]) == float(row["reference"]), row
                checked += 1
        assert checked >= least
    equations = 0
    for row in DEMONSTRATIONS:
        for left, right in re.findall(r"([\d(][\d\s()+*/-]*\d\)?(?: \* \d+)?) = (\d+)", demonstration(row)[1]):
            assert calculate(left) == float(right), row
            equations += 1
    assert equations >= 8


def test_classifying_references_are_among_the_choices() -> None:
    for row in ASKED:
        if row["kind"] == "classifying":
            assert row["reference"].lower() in words(row["prompt"]), row


def test_demonstrations_hold_the_house_style(rubric: Rubric) -> None:
    totals = []
    for row in DEMONSTRATIONS:
        asked, answer = demonstration(row)
        assert len(sentences(answer)) <= 2, answer
        assert len(words(answer)) <= 30, answer
        assert not re.match(r"(?i)(sure|certainly|of course|great question|as an ai)\b", answer)
        totals.append(points(rubric, asked, answer))
        assert totals[-1] >= 8.5, answer
    assert fmean(totals) >= 9.5


def test_references_score_full_points_and_junk_few(rubric: Rubric) -> None:
    """The held-out prompts' bounds leave a rubric room to change: nobody tunes them on each other."""
    for data, least, most in ((PROMPTS, 9.5, 3.5), (HELD_OUT, 9.0, 4.0)):
        for row in data:
            if "reference" in row:
                assert points(rubric, row, row["reference"]) >= least, row
            for junk in ("", "Yes.", row["prompt"], f"{row['prompt']} {row['prompt']}", "and and and and and and"):
                assert points(rubric, row, junk) <= most, (row, junk)
