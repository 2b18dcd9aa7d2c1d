"""A stage's prompts in the form that its settings give them, and the responses that are made of what was written."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from alignment.data.demonstrations import scan_demonstrations
from alignment.data.split import opening
from alignment.errors import Fault, InputError, StageError, shortened
from alignment.prompting.answers import vote, written_answer
from alignment.prompting.forms import messages_of
from alignment.prompting.questions import NumberedQuestions, Question, scan_questions
from alignment.prompting.shots import chooser
from alignment.recipe.stages.prompting import Prompting
from alignment.records import Message, Prompt, Record, Response


class PutPrompt(Record):
    """A prompt as it was put: what ``prompt_id`` names is the plain one."""

    prompt_id: str
    messages: tuple[Message, ...]


class WrittenAnswers(Record):
    """What a response is made of: everything that was written, and what was read of each (null: nothing)."""

    response_id: str
    model: str
    texts: tuple[str, ...]
    read: tuple[str | None, ...]


def put_prompts(
    settings: Prompting, prompts: Sequence[Prompt], file: Path | None, seed: int, away: Sequence[Prompt] = ()
) -> list[Prompt]:
    """The prompts as they are put, under their own ids. ``file`` holds the examples.

    Raises InputError for faults of the examples, StageError where one of them is a prompt itself, or one of ``away``.
    """
    examples: list[Question] = []
    if file is not None:
        numbered, faults = scan_examples(file, settings)
        if faults:
            raise InputError(faults)
        if leaking := list(leaks(numbered, [*prompts, *away])):
            row, what = leaking[0]
            raise StageError(f"{file}: the example of row {row} is asked itself, or held out ({what!r}): remove it")
        examples = [one for _row, one in numbered]
    choose = chooser(settings, examples, seed)
    return [
        prompt.model_copy(update={"messages": messages_of(settings, settings, question, choose(question))})
        for prompt in prompts
        for question in [Question(prompt=prompt, answer="")]
    ]


def scan_examples(file: Path, settings: Prompting) -> tuple[NumberedQuestions, list[Fault]]:
    """The examples of a file with their rows, and its faults: too few, of several turns, or without a reasoning that is
    shown."""
    rows, faults = scan_questions(file)
    if faults and (shown := _demonstrations(file)) is not None:
        rows, faults = shown, []
    faults += list(_example_faults(rows, settings, file))
    if not faults and len(rows) < settings.shots:
        faults.append(
            Fault(f"{len(rows)} examples, and {settings.shots} are shown", "add some, or show fewer", str(file))
        )
    return rows, shortened(faults)


def _demonstrations(file: Path) -> NumberedQuestions | None:
    """The examples of a file of demonstrations; None where it is none."""
    try:
        rows, _duplicates, faults = scan_demonstrations(file)
    except InputError:
        return None
    if faults:
        return None
    return [
        (
            row,
            Question(
                prompt=Prompt(id=one.id, messages=one.messages[:-1], kind=one.kind, source=one.source),
                answer=one.messages[-1].content,
            ),
        )
        for row, one in rows
    ]


def _example_faults(rows: NumberedQuestions, settings: Prompting, file: Path) -> Iterator[Fault]:
    for row, one in rows:
        if len([turn for turn in one.prompt.messages if turn.role != "system"]) > 1:
            yield Fault("an example of several turns", "give one question and its answer", str(file), row)
        elif settings.reasoning and one.reasoning is None:
            yield Fault("no reasoning, which is shown", 'add the column "reasoning"', str(file), row, "reasoning")


def leaks(examples: NumberedQuestions, prompts: Sequence[Prompt]) -> Iterator[tuple[int, str]]:
    """The rows of examples that open as one of the prompts does, or ask what it asks last, each with its question."""
    asked = {opening(prompt) for prompt in prompts}
    asked |= {" ".join(prompt.messages[-1].content.split()).casefold() for prompt in prompts}
    for row, one in examples:
        if opening(one.prompt) in asked:
            yield row, one.text.splitlines()[0][:60]


def settled(settings: Prompting, groups: Sequence[Sequence[Response]]) -> tuple[list[Response], list[WrittenAnswers]]:
    """One response of each group of answers, and what it was made of: the answer that most of them give."""
    responses, written = [], []
    for group in groups:
        both = [written_answer(one.text, settings, reasoning=settings.reasoning) for one in group]
        if settings.keep == "whole":
            chosen = group[0]
        else:
            winner = vote(read for read, _text in both)
            place = next((place for place, (read, _text) in enumerate(both) if read == winner), 0)
            chosen = group[place].model_copy(
                update={"text": both[place][1], "tokens": sum(one.tokens for one in group)}
            )
        chosen = chosen.model_copy(update={"id": group[0].id})
        responses.append(chosen)
        written.append(
            WrittenAnswers(
                response_id=chosen.id, model=chosen.model, texts=tuple(one.text for one in group),
                read=tuple(read for read, _text in both),
            )
        )  # fmt: skip
    return responses, written
