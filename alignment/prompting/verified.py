"""Answers that no right answer is compared with: a checker runs on them, as it does where they are rewarded."""

from collections.abc import Sequence

from alignment.prompting.answers import VERIFIED, read_answer
from alignment.prompting.questions import Question
from alignment.recipe.rewards.verifiable import CodeReward, InstructionsReward
from alignment.recipe.stages.experiments.benchmark import QuestionTask
from alignment.reward.instructions import instructions
from alignment.reward.protocol import Component, Reward, RewardInput, Rewards
from alignment.reward.verifiable import code

Answered = tuple[Question, Sequence[str]]  # a question and the texts that answer it


def readings(task: QuestionTask, answered: Sequence[Answered], *, reasoning: bool) -> list[tuple[str | None, ...]]:
    """What was read of each text of each question, in a form in which equal answers are equal; None: nothing.

    Where a checker says what is right, it is :data:`VERIFIED`, and None where it says that it is not.
    """
    if not task.is_verified:
        return [tuple(read_answer(text, task, reasoning=reasoning) for text in texts) for _question, texts in answered]
    rewards = Rewards([Component(task.answer, 1.0, _reward(task))])
    inputs = [
        RewardInput(question.prompt.model_copy(update={"reference": question.answer}), text, 0)
        for question, texts in answered for text in texts
    ]  # fmt: skip
    passed = iter(rewards.score(inputs)[task.answer])
    return [tuple(VERIFIED if next(passed) == 1.0 else None for _text in texts) for _question, texts in answered]


def _reward(task: QuestionTask) -> Reward:
    if task.answer == "code":
        return code(CodeReward(kind="code"))
    return instructions(InstructionsReward(kind="instructions", loose=task.loose))
