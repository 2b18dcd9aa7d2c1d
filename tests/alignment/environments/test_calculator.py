"""The calculator as an environment: calls, mistakes in them, and the last answer's reward."""

import json

import pytest

from alignment.environments.calculator import Calculator


def asked(reference="29842"):
    calculator = Calculator()
    calculator.reset({"messages": [], "reference": reference, "kind": "general", "source": ""}, 0)
    return calculator


def call(expression, name="calculator"):
    return f"<tool_call>{json.dumps({'name': name, 'arguments': {'expression': expression}})}</tool_call>"


def test_a_call_is_answered_and_an_answer_without_one_ends_the_episode():
    calculator = asked()
    assert calculator.step(f"I compute it. {call('347 * 86')}") == ("29842", False, 0.0)
    assert calculator.step("It is 29842.") == ("", True, 1.0)


def test_several_calls_are_answered_in_their_order():
    assert asked().step(call("1 + 1") + "\n" + call("1 / 0")) == ("2\nerror: division by zero", False, 0.0)


@pytest.mark.parametrize(
    "said",
    [
        "<tool_call>347 * 86</tool_call>",
        "<tool_call>[]</tool_call>",
        '<tool_call>{"name": "calculator"}</tool_call>',
        '<tool_call>{"name": "calculator", "arguments": "347 * 86"}</tool_call>',
        '<tool_call>{"name": "calculator", "arguments": {"expression": 5}}</tool_call>',
        call("1 + 1", name="search"),
        "<tool_call></tool_call>",
    ],
)
def test_a_call_that_is_none_is_told_so(said):
    observation, done, reward = asked().step(said)
    assert observation.startswith("error: ")
    assert "\n" not in observation
    assert (done, reward) == (False, 0.0)


@pytest.mark.parametrize(
    ("answer", "reference", "reward"),
    [
        ("29842", "29842", 1.0),
        ("The result is 29,842.", "29842", 1.0),
        ("347 * 86 = 29842", "29842", 1.0),
        ("29842 or 29843", "29842", 0.0),  # the last number counts
        ("29842.0", "29842", 1.0),
        ("-5", "5", 0.0),
        ("0.25", "0.25", 1.0),
        (".25", "0.25", 1.0),
        ("none", "29842", 0.0),
        ("29842", None, 0.0),
        ("29842", "many", 0.0),
        ("<tool_call>29842", "29842", 1.0),  # an unended call is none
    ],
)
def test_the_reward_of_the_last_answer(answer, reference, reward):
    assert asked(reference).step(answer) == ("", True, reward)
