"""Rewards that check an answer against its prompt's reference, or against a rule that decides right and wrong."""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from alignment.data.text import plain_answer
from alignment.errors import StageError
from alignment.recipe.rewards.settings import reward_name
from alignment.recipe.rewards.verifiable import (
    ChoiceReward,
    CodeReward,
    ExactReward,
    JsonReward,
    NumberReward,
    RegexReward,
)
from alignment.reward.math_check import MathChecker
from alignment.reward.patterns import BoundedRule
from alignment.reward.protocol import Reward, RewardInput, shown
from alignment.reward.sandbox import run_all

_FENCE = re.compile(r"```[\w+-]*[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


def reference_of(answer: RewardInput) -> str:
    """The prompt's reference. Raises StageError where it has none: there is nothing to compare with."""
    if answer.prompt.reference is None:
        raise StageError(f"the prompt has no reference to compare with; {shown(answer)}")
    return answer.prompt.reference


def each(score: Callable[[RewardInput], float]) -> Reward:
    """A reward that looks at one answer at a time."""
    return lambda answers: [score(answer) for answer in answers]


def number(settings: NumberReward) -> Reward:
    """See :class:`NumberReward`."""
    checker = MathChecker(settings.decimals)
    return lambda answers: checker.equal([(reference_of(answer), answer.text) for answer in answers])


def exact(settings: ExactReward) -> Reward:
    """See :class:`ExactReward`."""

    def plain(text: str) -> str:
        return " ".join(text.split()) if settings.strict else plain_answer(text)

    return each(lambda answer: float(plain(answer.text) == plain(reference_of(answer))))


def choice(settings: ChoiceReward) -> Reward:
    """See :class:`ChoiceReward`."""

    def score(answer: RewardInput) -> float:
        wanted, given = (chosen_letter(text, settings.letters) for text in (reference_of(answer), answer.text))
        return float(given is not None and given == wanted)

    return each(score)


def chosen_letter(text: str, letters: str) -> str | None:
    """The letter a text settles on, or None: the last one that it marks as an answer, else the last that stands alone.

    "a" is also a word. So a small letter counts only in brackets, or marked and at the end of its clause; a capital
    counts wherever it stands alone.
    """
    small = letters.lower()
    mark = r"(?i:answer|option|choice)(?i:\s+is)?\s*(?::\s*)?[(\[*]*"
    marked = re.findall(
        rf"{mark}([{letters}])(?!\w)|{mark}([{small}])(?=[)\].,;*]|\s*$)|[(\[]([{letters}{small}])[)\]]",
        text,
        re.MULTILINE,
    )
    if marked:
        return str(next(letter for letter in marked[-1] if letter)).upper()
    alone = re.findall(rf"(?<![\w'])([{letters}])(?![\w'])", text) or re.findall(rf"^\s*([{small}])[.)]?\s*$", text)
    return str(alone[-1]).upper() if alone else None


def regex(settings: RegexReward) -> Reward:
    """See :class:`RegexReward`."""
    rule = BoundedRule(reward_name(settings), settings.seconds)

    def question(answer: RewardInput) -> dict[str, Any]:
        pattern = settings.pattern
        if "{reference}" in pattern:
            pattern = pattern.replace("{reference}", re.escape(reference_of(answer)))
        return {
            "pattern": pattern, "whole": settings.whole, "ignore_case": settings.ignore_case, "text": answer.text,
        }  # fmt: skip

    return lambda answers: rule.holds(list(map(question, answers)))


def json_schema(settings: JsonReward) -> Reward:
    """See :class:`JsonReward`."""
    rule, schema = BoundedRule(reward_name(settings), settings.seconds), json.dumps(settings.definition)
    return lambda answers: rule.holds([{"schema": schema, "text": fenced(answer.text)} for answer in answers])


def code(settings: CodeReward) -> Reward:
    """See :class:`CodeReward`."""

    def score(answers: Sequence[RewardInput]) -> list[float]:
        programs = [(fenced(answer.text), reference_of(answer)) for answer in answers]
        outcomes = run_all(
            programs, seconds=settings.seconds, memory_mb=settings.memory_mb, processes=settings.processes
        )
        return [float(outcome.passed) for outcome in outcomes]

    return score


def fenced(text: str) -> str:
    """The text of the last fenced block, else the whole text."""
    blocks = _FENCE.findall(text)
    return str(blocks[-1]) if blocks else text
