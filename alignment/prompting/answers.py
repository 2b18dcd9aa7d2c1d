"""What an answer says, read out of its text; and what several answers say together."""

import re
from collections import Counter
from collections.abc import Iterable

from alignment.data.text import plain_answer
from alignment.metrics.short_answers import label_of, last_number
from alignment.recipe.stages.prompting import ReadsAnswers

VERIFIED = "verified"  # what is read of an answer that a checker finds right


def read_answer(text: str, task: ReadsAnswers, *, reasoning: bool) -> str | None:
    """What ``text`` answers, in a form in which equal answers are equal strings; None where it says nothing readable.

    After ``reasoning`` it is what follows the last marker. Where the marker is missing, the last number counts (GSM8K's
    convention), and of labels and texts nothing does: what stands in the reasoning is not the answer.
    """
    if reasoning:
        parts = re.split(re.escape(task.marker), text, flags=re.IGNORECASE)
        if len(parts) > 1:
            text = parts[-1] if task.answer == "number" else first_line(parts[-1])
        elif task.answer != "number":
            return None
    return canonical(text, task)


def canonical(text: str, task: ReadsAnswers) -> str | None:
    """An answer without what makes no difference."""
    if task.answer == "number":
        number = last_number(text)
        return None if number is None else format(number.normalize() + 0, "f")
    if task.is_verified:
        return VERIFIED
    if task.answer == "label":
        place = label_of(text, task.labels)
        return task.labels[place] if place >= 0 else None
    return plain_answer(text) or None


def written_answer(text: str, task: ReadsAnswers, *, reasoning: bool) -> tuple[str | None, str]:
    """What ``text`` answers as :func:`read_answer` reads it, and as it is written; both empty where it says nothing."""
    read = read_answer(text, task, reasoning=reasoning)
    if read is None or task.answer != "text":
        return read, read or ""
    said = re.split(re.escape(task.marker), text, flags=re.IGNORECASE)[-1] if reasoning else text
    return read, (first_line(said) if reasoning else said).strip()


def first_line(text: str) -> str:
    """The first line that has something in it."""
    return next((line for line in text.splitlines() if line.strip()), "")


def vote(answers: Iterable[str | None]) -> str | None:
    """The answer that is given most often; of equally common ones that which was drawn first; None where none is."""
    counts = Counter(answer for answer in answers if answer is not None)
    return max(counts, key=counts.__getitem__) if counts else None
