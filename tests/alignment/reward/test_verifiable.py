"""Rewards that know right from wrong, on values worked out by hand."""

import pytest

from alignment.errors import StageError
from alignment.recipe.rewards.verifiable import (
    ChoiceReward,
    CodeReward,
    ExactReward,
    JsonReward,
    NumberReward,
    RegexReward,
)
from alignment.records import Message, Prompt
from alignment.reward.protocol import RewardInput
from alignment.reward.verifiable import choice, code, exact, fenced, json_schema, number, regex


def answer(text, reference=None, tokens=1):
    prompt = Prompt(id="1", messages=(Message(role="user", content="Well?"),), reference=reference)
    return RewardInput(prompt, text, tokens)


def scores(reward, *pairs):
    return list(reward([answer(text, reference) for text, reference in pairs]))


@pytest.fixture(scope="module")
def numbers():
    return number(NumberReward(kind="number"))


@pytest.mark.parametrize(
    ("text", "reference", "wanted"),
    [
        ("The answer is 12.", "12", 1),
        ("5 + 7 = 12", "12", 1),
        ("It is 13.", "12", 0),
        ("0.5", "1/2", 1),
        ("so it is \\boxed{\\frac{3}{4}}", "0.75", 1),
        ("1,200", "1200", 1),
        ("-3", "3", 0),
        ("twelve", "12", 0),
        ("", "12", 0),
        ("0.3333333", "1/3", 1),
        ("0.333", "1/3", 0),
        ("7 * 8", "56", 0),  # the question said again
        ("It is 24 + 11", "35", 0),
        ("24 + 11 = 35", "35", 1),
        ("12/4", "3", 0),
        ("1/2", "0.5", 1),
        ("10/20", "0.5", 0),
        ("\\boxed{\\frac12}", "0.5", 1),
        ("50%", "0.5", 1),
        ("2^3", "2^3", 1),  # no number is asked for
        ("$x + 1$", "$1 + x$", 1),
    ],
)
def test_numbers_are_compared_as_mathematics(text, reference, wanted, numbers):
    assert scores(numbers, (text, reference)) == [wanted]


def test_a_monstrous_number_costs_no_more_than_a_moment(numbers, monkeypatch):
    monkeypatch.setattr("alignment.reward.math_check.SECONDS", 2.0)
    assert scores(numbers, ("9**9**9**9**9", "12"), ("12", "12")) == [0, 1]


def test_exact_forgives_space_case_and_end_punctuation_unless_strict():
    pairs = [("  paris. ", "Paris"), ("Paris, France", "Paris"), ("Paris", "Paris"), ("new  york", "New York")]
    assert scores(exact(ExactReward(kind="exact")), *pairs) == [1, 0, 1, 1]
    assert scores(exact(ExactReward(kind="exact", strict=True)), *pairs) == [0, 0, 1, 0]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("B", 1),
        ("b", 1),
        ("b)", 1),
        ("(B) because A is wrong", 1),
        ("The answer is B.", 1),
        ("Answer: b", 1),
        ("It could be A or C, but option B", 1),
        ("A bee", 0),
        ("a bee", 0),
        ("Because.", 0),
        ("C", 0),
        ("I weighed B. The answer is D", 0),
        ("", 0),
    ],
)
def test_the_letter_that_is_chosen(text, wanted):
    assert scores(choice(ChoiceReward(kind="choice")), (text, "B")) == [wanted]


def test_a_regular_expression_may_hold_the_reference():
    anywhere = regex(RegexReward(kind="regex", pattern=r"<answer>\s*{reference}\s*</answer>"))
    assert scores(anywhere, ("<answer> 1.5 </answer> yes", "1.5"), ("<answer>115</answer>", "1.5")) == [1, 0]
    whole = regex(RegexReward(kind="regex", pattern=r"[a-z]+\.", whole=True, ignore_case=True))
    assert scores(whole, ("Yes.", None), ("Yes. No.", None)) == [1, 0]


def test_json_is_held_against_its_schema():
    schema = {"type": "object", "required": ["name"], "properties": {"age": {"type": "integer", "minimum": 0}}}
    reward = json_schema(JsonReward(kind="json_schema", definition=schema))
    texts = [
        '{"name": "Ada", "age": 3}',
        '```json\n{"name": "Ada"}\n```',
        '{"age": 3}',
        '{"name": 1, "age": -1}',
        "Ada",
    ]
    assert scores(reward, *((text, None) for text in texts)) == [1, 1, 0, 0, 0]
    anything = json_schema(JsonReward(kind="json_schema"))
    assert scores(anything, ("[1, 2]", None), ("[1, 2", None), ("[" * 100_000, None)) == [1, 0, 0]


def test_code_must_pass_the_references_tests():
    tests = "assert double(2) == 4\nassert double(-1) == -2"
    texts = [
        "def double(x):\n    return 2 * x",
        "Here:\n```python\ndef double(x):\n    return x + x\n```\nDone.",
        "def double(x):\n    return x * x",
        "def double(x) return",
        "raise SystemExit(0)",
    ]
    reward = code(CodeReward(kind="code", seconds=20))
    assert scores(reward, *((text, tests) for text in texts)) == [1, 1, 0, 0, 0]


def test_the_last_fenced_block_counts():
    assert fenced("```\na\n```\nand\n```py\nb\n```") == "b\n"
    assert fenced("plain") == "plain"
    assert fenced("```python\ncut off") == "cut off"


@pytest.mark.parametrize(
    "reward",
    [exact(ExactReward(kind="exact")), choice(ChoiceReward(kind="choice")), code(CodeReward(kind="code"))],
)
def test_a_prompt_without_reference_is_an_error_that_shows_it(reward):
    with pytest.raises(StageError, match=r"no reference.*prompt 'Well\?', answer 'Yes'"):
        reward([answer("Yes")])
