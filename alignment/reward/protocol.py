"""What a reward is: something that scores a batch of answers; and how several are scored together.

A reward may return its scores or an awaitable of them, so that a judge behind a network asks about a whole batch at
once; all that wait do so together. A reward that does not keep to the protocol (raises, gives another number of scores
than there are answers, or one that is not finite) ends the run with the prompt and the answer it happened on.
"""

import asyncio
import math
from collections.abc import Awaitable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from inspect import isawaitable
from typing import Protocol

from alignment.errors import StageError
from alignment.records import Prompt


@dataclass(frozen=True, slots=True)
class RewardInput:
    """What is scored: an answer to a prompt, whose ``reference`` it may be compared with.

    ``tokens`` counts the generated tokens. ``finished`` is False where the answer was cut off at its longest length.
    """

    prompt: Prompt
    text: str
    tokens: int
    finished: bool = True


Scores = Sequence[float]


class FunctionError(Exception):
    """What a user's function raised in its own process: the name of its class, and what it says."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Reward(Protocol):
    """Scores answers, in their order, one finite number each."""

    def __call__(self, answers: Sequence[RewardInput], /) -> Scores | Awaitable[Scores]: ...


@dataclass(frozen=True, slots=True)
class Component:
    """One reward of several: its metric's name and its weight in their sum."""

    name: str
    weight: float
    reward: Reward


class Rewards:
    """Several rewards as one."""

    def __init__(self, components: Sequence[Component]) -> None:
        self.components = tuple(components)

    @property
    def names(self) -> list[str]:
        return [component.name for component in self.components]

    def score(self, answers: Sequence[RewardInput]) -> dict[str, list[float]]:
        """Every component's scores by its name, without weights. Raises StageError: see the module's docstring."""
        if not answers:
            return {name: [] for name in self.names}
        found: dict[str, Scores] = {}
        waiting: dict[str, Awaitable[Scores]] = {}
        for component in self.components:
            try:
                scores = component.reward(answers)
            except Exception as error:
                raise _failure(component, answers, error) from error
            if isawaitable(scores):
                waiting[component.name] = scores
            else:
                found[component.name] = scores
        awaited = _wait(waiting) if waiting else {}
        for component in self.components:
            scores_or_error = awaited.get(component.name)
            if isinstance(scores_or_error, BaseException):
                raise _failure(component, answers, scores_or_error) from scores_or_error
            if scores_or_error is not None:
                found[component.name] = scores_or_error
        return {
            component.name: _checked(component.name, found[component.name], answers) for component in self.components
        }

    def total(self, scores: Mapping[str, Sequence[float]]) -> list[float]:
        """The weighted sum of :meth:`score`'s result, for each answer."""
        columns = [[component.weight * value for value in scores[component.name]] for component in self.components]
        return [sum(values) for values in zip(*columns, strict=True)]


def shown(answer: RewardInput) -> str:
    """The prompt and the answer, for a message."""
    return f"prompt {answer.prompt.messages[-1].content!r}, answer {answer.text!r}"


def _wait(waiting: Mapping[str, Awaitable[Scores]]) -> dict[str, Scores | BaseException]:
    """The results of awaitables, or their exceptions. In a thread of its own: the caller may have a loop running."""

    async def together() -> list[Scores | BaseException]:
        return await asyncio.gather(*waiting.values(), return_exceptions=True)

    with ThreadPoolExecutor(1) as pool:
        return dict(zip(waiting, pool.submit(lambda: asyncio.run(together())).result(), strict=True))


def _failure(component: Component, answers: Sequence[RewardInput], error: BaseException) -> StageError:
    """The message of a reward that raised: the first answer that it raises on alone, else the batch's first."""
    if isinstance(error, StageError):
        return error
    culprit = next((answer for answer in answers if _fails(component, answer)), answers[0])
    kind = error.kind if isinstance(error, FunctionError) else type(error).__name__
    return StageError(f"the reward {component.name} failed with {kind}: {error}; {shown(culprit)}")


def _fails(component: Component, answer: RewardInput) -> bool:
    try:
        scores = component.reward([answer])
        return isawaitable(scores) and isinstance(_wait({"": scores})[""], BaseException)
    except Exception:
        return True


def _checked(name: str, scores: Scores, answers: Sequence[RewardInput]) -> list[float]:
    try:
        values = [float(score) for score in scores]
    except (TypeError, ValueError) as error:
        raise StageError(f"the reward {name} gave no list of numbers ({error}); {shown(answers[0])}") from error
    if len(values) != len(answers):
        raise StageError(f"the reward {name} gave {len(values)} scores for {len(answers)} answers; {shown(answers[0])}")
    for answer, value in zip(answers, values, strict=True):
        if not math.isfinite(value):
            raise StageError(f"the reward {name} gave {value}; {shown(answer)}")
    return values
