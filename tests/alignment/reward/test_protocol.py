"""Rewards as one: weights, judges that wait, users' functions, and what a broken reward says."""

import asyncio
from pathlib import Path

import pytest

from alignment.errors import StageError
from alignment.recipe.rewards.user_function import FunctionReward
from alignment.records import Message, Prompt
from alignment.reward.protocol import Component, RewardInput, Rewards
from alignment.reward.user_function import function, problem_of

USERS = """
import asyncio
DEPTH = 2

def shout(prompts, responses, references, bonus=0.0):
    return [float(text.isupper()) + bonus for text in responses]

async def judge(prompts, responses, references):
    await asyncio.sleep(0)
    return [len(prompt[-1]["content"]) + len(reference or "") for prompt, reference in zip(prompts, references)]
"""


def answer(text, question="Well?", reference=None):
    return RewardInput(Prompt(id="1", messages=(Message(role="user", content=question),), reference=reference), text, 1)


ANSWERS = [answer("one"), answer("TWO", "Why?", "yes")]


def rewards(*parts):
    return Rewards([Component(name, weight, reward) for name, weight, reward in parts])


def test_the_sum_is_weighted_and_each_keeps_its_own_scores():
    both = rewards(("words", 2.0, lambda batch: [1, 3]), ("short", -0.5, lambda batch: (0.5, 1)))
    scores = both.score(ANSWERS)
    assert scores == {"words": [1.0, 3.0], "short": [0.5, 1.0]}
    assert both.total(scores) == [1.75, 5.5]
    assert both.score([]) == {"words": [], "short": []}


def test_rewards_that_wait_do_so_together():
    async def first(batch):
        waiting.set()
        return [1.0 for _ in batch]

    async def second(batch):
        await asyncio.wait_for(waiting.wait(), 10)  # would never end if the first came after it
        return [2.0 for _ in batch]

    waiting = asyncio.Event()
    both = rewards(("second", 1, second), ("first", 1, first))
    assert both.score(ANSWERS) == {"second": [2.0, 2.0], "first": [1.0, 1.0]}


def test_a_caller_with_a_running_loop_may_score():
    async def judge(batch):
        return [1.0 for _ in batch]

    async def caller():
        return rewards(("judge", 1, judge)).score(ANSWERS)

    assert asyncio.run(caller()) == {"judge": [1.0, 1.0]}


def raises_on_two(batch):
    if any(one.text == "TWO" for one in batch):
        raise ValueError("no capitals")
    return [0.0 for _ in batch]


async def raises_later(batch):
    return raises_on_two(batch)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda batch: [0.0, float("nan")], r"bad gave nan; prompt 'Why\?', answer 'TWO'"),
        (lambda batch: [float("inf"), 0.0], r"bad gave inf; prompt 'Well\?', answer 'one'"),
        (lambda batch: [0.0], r"bad gave 1 scores for 2 answers; prompt 'Well\?', answer 'one'"),
        (lambda batch: [0.0, 0.0, 0.0], "bad gave 3 scores for 2 answers"),
        (lambda batch: [0.0, None], "bad gave no list of numbers"),
        (lambda batch: 3, "bad gave no list of numbers"),
        (raises_on_two, r"bad failed with ValueError: no capitals; prompt 'Why\?', answer 'TWO'"),
        (raises_later, r"bad failed with ValueError: no capitals; prompt 'Why\?', answer 'TWO'"),
    ],
)
def test_a_broken_reward_names_the_answer(reward, message):
    with pytest.raises(StageError, match=message):
        rewards(("good", 1, lambda batch: [0.0] * len(batch)), ("bad", 1, reward)).score(ANSWERS)


@pytest.fixture
def users(tmp_path: Path):
    path = tmp_path / "rewards.py"
    path.write_text(USERS, "utf-8")
    return path


def test_a_users_functions(users):
    shout = FunctionReward(kind="function", function="rewards.py:shout", options={"bonus": 0.5})
    judge = FunctionReward(kind="function", function="rewards.py:judge")
    both = rewards(("shout", 1, function(shout, users)), ("judge", 1, function(judge, users)))
    assert both.score(ANSWERS) == {"shout": [0.5, 1.5], "judge": [5.0, 7.0]}


def test_a_function_of_an_installed_package():
    total = FunctionReward(kind="function", function="statistics:fmean")
    with pytest.raises(StageError, match="mean failed with TypeError"):  # it is found, and is no reward
        rewards(("mean", 1, function(total, None))).score(ANSWERS)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("rewards.py:shout", None),
        ("rewards.py:DEPTH", None),
        ("rewards.py:asyncio", None),
        ("rewards.py:whisper", "defines no whisper"),
        ("missing.py:shout", "no file"),
    ],
)
def test_what_is_wrong_with_a_function_is_known_without_running_it(name, problem, users):
    found = problem_of(name, users.parent / name.split(":")[0])
    assert found is None if problem is None else problem in str(found)


def test_a_function_that_cannot_be_loaded(users):
    users.write_text("raise RuntimeError('half done')", "utf-8")
    with pytest.raises(StageError, match="half done"):
        function(FunctionReward(kind="function", function="rewards.py:shout"), users)
