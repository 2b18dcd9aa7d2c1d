"""Patterns, schemas and functions of the user end: in time, or by the limit that the recipe sets."""

import time

import pytest

from alignment.errors import StageError
from alignment.recipe.rewards.user_function import FunctionReward
from alignment.recipe.rewards.verifiable import ChoiceReward, JsonReward, RegexReward
from alignment.records import Message, Prompt
from alignment.reward.protocol import Component, RewardInput, Rewards
from alignment.reward.user_function import function
from alignment.reward.verifiable import choice, json_schema, regex

LIMIT = 0.5


def answer(text, reference=None):
    return RewardInput(Prompt(id="1", messages=(Message(role="user", content="Well?"),), reference=reference), text, 1)


ANSWERS = [answer("aaaa"), answer("a" * 60 + "!"), answer("a")]  # the second takes (a+)+$ about 2**60 steps


def test_a_pattern_that_backtracks_ends_and_the_others_are_scored():
    started = time.monotonic()
    reward = regex(RegexReward(kind="regex", pattern="^(a+)+$", seconds=LIMIT))
    assert reward(ANSWERS) == [1.0, 0.0, 1.0]
    assert time.monotonic() - started < 60  # not the age of the universe


def test_a_schema_whose_pattern_backtracks_ends():
    reward = json_schema(JsonReward(kind="json_schema", definition={"pattern": "^(a+)+$"}, seconds=LIMIT))
    assert reward([answer(f'"{one.text}"') for one in ANSWERS]) == [1.0, 0.0, 1.0]


def test_long_white_space_after_a_mark_is_no_trap():
    reward = choice(ChoiceReward(kind="choice"))
    started = time.process_time()
    assert reward([answer("The answer" + " " * 60_000 + "B", "B")]) == [1.0]
    assert time.process_time() - started < 20  # quadratic steps would be 3.6 thousand million


@pytest.mark.parametrize(
    "body",
    ["while True: pass", "import re; re.search('(a+)+$', 'a' * 60 + '!')", "import os; os._exit(0)",
     "import time; time.sleep(1000)"],
)  # fmt: skip
def test_a_function_that_does_not_end_ends_the_stage(body, tmp_path):
    path = tmp_path / "rewards.py"
    path.write_text(f"def score(prompts, responses, references):\n    {body}\n    return [1.0] * len(responses)\n")
    reward = function(FunctionReward(kind="function", function="rewards.py:score", seconds=LIMIT), path)
    with pytest.raises(StageError, match=r"the reward function did not answer within 0\.5 s for 3 answers"):
        Rewards([Component("mine", 1.0, reward)]).score(ANSWERS)
