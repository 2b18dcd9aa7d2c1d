"""A user's environment in its process: whatever it does wrong is one line that names it."""

import time
from pathlib import Path

import pytest

from alignment.environments.process import EnvironmentProcess
from alignment.errors import StageError
from alignment.recipe.stages.environment import CalculatorEnvironment, PythonEnvironment
from alignment.records import Message, Prompt
from tests.documented import blocks

PROMPT = Prompt(id="1", messages=(Message(role="user", content="Go."),), reference="7", kind="maze", source="file")
GOOD = '''
from dataclasses import dataclass, field

@dataclass
class Counter:
    """Dataclasses look their module up."""
    at: int = 0
    seen: list = field(default_factory=list)

    def reset(self, prompt, seed):
        print("to standard error")
        self.seen = [prompt["messages"][-1]["content"], prompt["reference"], prompt["kind"], prompt["source"], seed]

    def step(self, answer):
        self.at += 1
        return f"{answer} {self.at} {self.seen}", self.at == 2, self.at / 2
'''


def made(tmp_path, source, name="Counter", seconds=10.0, **options):
    path = tmp_path / "own.py"
    path.write_text(source, "utf-8")
    settings = PythonEnvironment(kind="python", class_path=f"own.py:{name}", seconds=seconds, options=options)
    return EnvironmentProcess(settings, path)


def test_episodes_are_told_apart_and_know_their_prompt(tmp_path):
    environment = made(tmp_path, GOOD, at=0)
    environment.reset(0, PROMPT, 11)
    environment.reset(1, PROMPT, 12)
    first = environment.step(0, PROMPT, "left")
    assert (first.observation, first.done, first.reward) == ("left 1 ['Go.', '7', 'maze', 'file', 11]", False, 0.5)
    other = environment.step(1, PROMPT, "right")
    assert other.observation == "right 1 ['Go.', '7', 'maze', 'file', 12]"
    assert environment.step(0, PROMPT, "left").done
    environment.reset(0, PROMPT, 13)  # a new episode
    assert environment.step(0, PROMPT, "on").observation.startswith("on 1 ")


def wrong(returned="('', True, 0.0)", reset="None", before=""):
    return f"""
import asyncio, time
class Counter:
    def reset(self, prompt, seed):
        return {reset}
    def step(self, answer):
        {before or "pass"}
        return {returned}
"""


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (wrong(before="raise KeyError('door\\nnext line')"), "step failed with KeyError: "),
        (wrong(before="raise SystemExit"), "step failed with SystemExit"),
        (wrong(before="import os; os._exit(3)"), "step did not return within 2 s, or ended its process"),
        (wrong(before="time.sleep(60)"), "step did not return within 2 s, or ended its process"),
        (wrong("None"), r"step has to return \(observation, done, reward\), and returned None"),
        (wrong("('', True)"), r"step has to return \(observation, done, reward\), and returned \('', True\)"),
        (wrong("'abc'"), "step has to return"),
        (wrong("(None, True, 0.0)"), "step gave an observation that is no text: None"),
        (wrong("(b'x', True, 0.0)"), "step gave an observation that is no text"),
        (wrong("('\\ud800', True, 0.0)"), "step failed with UnicodeEncodeError"),
        (wrong("('', 'no', 0.0)"), "step gave done='no', which is neither True nor False"),
        (wrong("('', None, 0.0)"), "step gave done=None"),
        (wrong("('', True, None)"), "step gave the reward None, which is no finite number"),
        (wrong("('', True, float('nan'))"), "step gave the reward nan"),
        (wrong("('', True, '1')"), "step gave the reward '1'"),
        (wrong("('', True, True)"), "step gave the reward True"),
        (wrong("asyncio.sleep(0)"), "step is async"),
    ],
)
def test_what_a_step_does_wrong_is_one_line_that_names_it(source, words, tmp_path):
    environment = made(tmp_path, source, seconds=2.0)
    environment.reset(0, PROMPT, 1)
    started = time.perf_counter()
    with pytest.raises(StageError, match=f"^the environment own.py:Counter: {words}") as error:
        environment.step(0, PROMPT, "an answer\nof two lines")
    assert time.perf_counter() - started < 10
    assert len(str(error.value).splitlines()) == 1
    assert "prompt 'Go.'" in str(error.value)
    assert "an answer" in str(error.value)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (wrong(reset="'Welcome.'"), "reset has to return nothing, and returned 'Welcome.'"),
        (wrong(reset="1 / 0"), "reset failed with ZeroDivisionError: division by zero"),
        (wrong(reset="time.sleep(60)"), "reset did not return within 2 s"),
        ("class Counter: pass", "reset failed with AttributeError"),
        ("class Counter:\n    def __init__(self, needed): pass", "reset failed with TypeError"),
    ],
)
def test_what_a_reset_does_wrong_is_one_line_that_names_it(source, words, tmp_path):
    environment = made(tmp_path, source, seconds=2.0)
    with pytest.raises(StageError, match=f"^the environment own.py:Counter: {words}") as error:
        environment.reset(0, PROMPT, 1)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("source", ["raise RuntimeError('half done')", "Other = 1"])
def test_a_class_that_cannot_be_loaded(source, tmp_path):
    with pytest.raises(StageError, match=r"the environment own\.py:Counter cannot be loaded: "):
        made(tmp_path, source)


def test_numbers_of_numpy_are_numbers(tmp_path):
    source = wrong("('', np.bool_(True), np.float32(0.5))").replace("import asyncio", "import numpy as np, asyncio")
    environment = made(tmp_path, source)
    environment.reset(0, PROMPT, 1)
    step = environment.step(0, PROMPT, "x")
    assert (step.done, step.reward) == (True, 0.5)


def test_the_shipped_calculator_runs_there_too():
    environment = EnvironmentProcess(CalculatorEnvironment(kind="calculator"))
    environment.reset(0, PROMPT, 1)
    assert environment.step(0, PROMPT, "7").reward == 1.0
    environment.close()


def test_the_documented_class_does_what_it_says(tmp_path):
    page = Path(__file__).parents[3] / "docs" / "training.md"
    shown = next(block.text for block in blocks(page) if block.title == "maze.py")
    environment = made(tmp_path, shown, "Guess", worth=2.0)
    environment.reset(0, PROMPT, 1)  # the reference is 7
    told = [environment.step(0, PROMPT, answer) for answer in ("3", "nine", "11", "7")]
    assert [one.observation for one in told] == ["higher", "higher", "lower", ""]
    assert [(one.done, one.reward) for one in told] == [(False, 0.0)] * 3 + [(True, 2.0)]
