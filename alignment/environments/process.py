"""Environments in a process of their own: whatever one does, it ends in time, or it is ended.

All episodes' environments of a stage live in one process and are told apart by a number. What one of them does wrong
(raises, does not return in time, returns something else than it must) ends the stage with one line that names it.
"""

from pathlib import Path
from typing import Any, NoReturn

from alignment.environments import calculator, reasoning_tasks
from alignment.environments.protocol import StepResult
from alignment.errors import StageError
from alignment.plain_text import one_line
from alignment.recipe.stages.environment import AnyEnvironment, environment_data
from alignment.records import Prompt
from alignment.reward.side_process import SideProcess
from alignment.reward.user_function import user_process
from alignment.stage import StageContext

SHIPPED = {
    "calculator": f"{calculator.__name__}:Calculator",
    "reasoning_gym": f"{reasoning_tasks.__name__}:ReasoningTask",
}
SHOWN = 200  # characters of a prompt, of an answer and of a problem in a message


def environment_process(settings: AnyEnvironment, context: StageContext) -> "EnvironmentProcess":
    """The environments of a stage. Raises StageError where their class cannot be loaded."""
    return EnvironmentProcess(settings, context.data.get(environment_data(settings)))


def options_of(settings: AnyEnvironment) -> dict[str, Any]:
    """The keyword arguments with which an environment's class is called."""
    if settings.kind == "reasoning_gym":
        return {"task": settings.task, "attempts": settings.attempts, "options": settings.options}
    return settings.options if settings.kind == "python" else {}


class EnvironmentProcess:
    """Runs the environments of ``settings``; ``path`` is the file of a user's class that is named by one."""

    def __init__(self, settings: AnyEnvironment, path: Path | None = None) -> None:
        self.settings = settings
        self.named = settings.class_used() or SHIPPED[settings.kind]
        self.name = settings.class_used() or settings.kind
        self._process: SideProcess = user_process(_PROGRAM, self.named, path, "environment")

    def reset(self, episode: int, prompt: Prompt, seed: int) -> None:
        """Makes an episode's environment anew. Raises StageError where it fails."""
        told = {
            "messages": [message.model_dump() for message in prompt.messages],
            "reference": prompt.reference,
            "kind": prompt.kind,
            "source": prompt.source,
        }
        question = {"episode": episode, "prompt": told, "seed": seed, "options": options_of(self.settings)}
        self._ask(question, prompt, "reset")

    def step(self, episode: int, prompt: Prompt, answer: str) -> StepResult:
        """What came of an answer. Raises StageError where the environment fails."""
        told = self._ask({"episode": episode, "answer": answer}, prompt, "step", answer)
        return StepResult(told["observation"], told["done"], told["reward"])

    def close(self) -> None:
        """Ends the process."""
        self._process.close()

    def _ask(self, question: dict[str, Any], prompt: Prompt, method: str, answer: str | None = None) -> dict[str, Any]:
        told = self._process.ask(question, self.settings.seconds)
        if told is None:
            problem = f"{method} did not return within {self.settings.seconds:g} s, or ended its process"
            self._fail(f"{problem}; mend it, or raise its `seconds`", prompt, answer)
        if "error" in told:
            self._fail(f"{method} failed with {': '.join(told['error'])[:SHOWN]}", prompt, answer)
        if "wrong" in told:
            self._fail(f"{method} {told['wrong']}", prompt, answer)
        found: dict[str, Any] = told
        return found

    def _fail(self, problem: str, prompt: Prompt, answer: str | None) -> NoReturn:
        at = f"prompt {prompt.messages[-1].content[:SHOWN]!r}"
        at += "" if answer is None else f", answer {answer[:SHOWN]!r}"
        raise StageError(one_line(f"the environment {self.name}: {problem}; {at}"))


_PROGRAM = r"""
import inspect, math, numbers

made = {}

def shown(value):
    return repr(value)[:100]

def reset(asked):
    made[asked["episode"]] = environment = called(**asked["options"])
    found = environment.reset(asked["prompt"], asked["seed"])
    if inspect.isawaitable(found):
        return {"wrong": "is async, and has to be a plain method"}
    return {} if found is None else {"wrong": f"has to return nothing, and returned {shown(found)}"}

def step(asked):
    found = made[asked["episode"]].step(asked["answer"])
    if inspect.isawaitable(found):
        return {"wrong": "is async, and has to be a plain method"}
    if not isinstance(found, (tuple, list)) or len(found) != 3:
        return {"wrong": f"has to return (observation, done, reward), and returned {shown(found)}"}
    observation, done, reward = found
    if not isinstance(observation, str):
        return {"wrong": f"gave an observation that is no text: {shown(observation)}"}
    if type(done).__name__ not in ("bool", "bool_"):  # the second is numpy's
        return {"wrong": f"gave done={shown(done)}, which is neither True nor False"}
    if isinstance(reward, (bool, str)) or not isinstance(reward, numbers.Real) or not math.isfinite(reward):
        return {"wrong": f"gave the reward {shown(reward)}, which is no finite number"}
    observation.encode()  # half a character could be told to nobody
    return {"observation": observation, "done": bool(done), "reward": float(reward)}

for line in sys.stdin:
    asked = json.loads(line)
    try:
        answer = reset(asked) if "prompt" in asked else step(asked)
    except BaseException as error:
        answer = {"error": said(error)}
    print(json.dumps(answer), file=answers, flush=True)
"""
