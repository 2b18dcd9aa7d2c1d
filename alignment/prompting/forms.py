"""A question in a form of prompt: system message, solved examples as turns, the question with what it asks for."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from alignment.digests import prompt_id
from alignment.prompting.questions import Question
from alignment.prompting.shots import chooser
from alignment.recipe.stages.prompting import PromptForm, QuestionWording
from alignment.records import Message, Prompt


class AskedQuestion(NamedTuple):
    """A question, and the prompt that puts it."""

    question: Question
    prompt: Prompt


def put(
    task: QuestionWording, form: PromptForm, questions: Sequence[Question], examples: Sequence[Question], seed: int
) -> list[AskedQuestion]:
    """Every question in a form. ``examples`` are enough for its shots, and have reasoning where it asks for some."""
    choose = chooser(form, examples, seed)
    return [AskedQuestion(question, _prompt(task, form, question, choose(question))) for question in questions]


def _prompt(task: QuestionWording, form: PromptForm, question: Question, shots: Sequence[Question]) -> Prompt:
    messages = messages_of(task, form, question, shots)
    return Prompt(
        id=prompt_id(messages), messages=messages, kind=question.prompt.kind, source=question.prompt.source,
        reference=question.answer,
    )  # fmt: skip


def messages_of(
    task: QuestionWording, form: PromptForm, question: Question, shots: Sequence[Question]
) -> tuple[Message, ...]:
    """The turns that put a question after ``shots``."""
    return tuple(_messages(task, form, question, shots))


def _messages(
    task: QuestionWording, form: PromptForm, question: Question, shots: Sequence[Question]
) -> Iterator[Message]:
    asked = question.prompt.messages
    system = [message for message in asked if message.role == "system"]
    if system:  # the question's own says more of it than the task's
        yield from system
    elif task.system is not None:
        yield Message(role="system", content=task.system)
    for shot in shots:
        yield Message(role="user", content=_worded(task, form, shot.text))
        yield Message(role="assistant", content=_solved(task, form, shot))
    turns = [message for message in asked if message.role != "system"]
    yield from turns[:-1]
    yield Message(role="user", content=_worded(task, form, question.text))


def _worded(task: QuestionWording, form: PromptForm, text: str) -> str:
    """What is asked, and how it is to be answered."""
    after = task.reasoning_instruction.replace("{marker}", task.marker) if form.reasoning else task.instruction
    return f"{text}\n{after}" if after else text


def _solved(task: QuestionWording, form: PromptForm, shot: Question) -> str:
    return f"{shot.reasoning}\n{task.marker} {shot.answer}" if form.reasoning else shot.answer
