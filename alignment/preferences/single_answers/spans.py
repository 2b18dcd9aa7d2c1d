"""Parts of single answers that people marked, each with a label and perhaps a comment."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from pydantic import Field

from alignment.preferences.vote_agreement import Agreement, figures_of
from alignment.records import Comparison, Message, Record


class Marking(NamedTuple):
    """All that one rater marked of a single answer: nothing, where nothing is to be marked."""

    comparison: Comparison
    rater: str
    spans: Sequence[dict[str, Any]]  # start, end, label, comment


class SpanMark(Record):
    """One marked part: ``text`` is what stands from ``start`` up to ``end``, in code points of the answer."""

    start: int = Field(ge=0)
    end: int = Field(ge=1)
    text: str
    label: str
    comment: str = ""
    rater: str


class AnswerSpans(Record):
    """An answer with everybody's marks, in the order of the text; ``raters`` have looked at it."""

    id: str  # the comparison's
    prompt: tuple[Message, ...] = Field(min_length=1)
    completion: str
    spans: tuple[SpanMark, ...]
    raters: int = Field(ge=1)
    finished: bool = True
    kind: str = "general"  # of its prompt


def answer_spans(markings: Sequence[Marking]) -> list[AnswerSpans]:
    """The answers that somebody looked at, those without a mark too, in the order of their ids."""
    by_answer: dict[str, list[Marking]] = {}
    for marking in markings:
        by_answer.setdefault(marking.comparison.id, []).append(marking)
    return [_of_answer(by_answer[name]) for name in sorted(by_answer)]


def span_agreement(markings: Sequence[Marking], *, bootstrap: int = 0, seed: int = 0) -> list[Agreement]:
    """How far raters agree on which answers have a part with a label: agreement, α and κ of every label's yes or no."""
    answers = sorted({one.comparison.id for one in markings})
    prompts = {one.comparison.id: one.comparison.prompt.id for one in markings}
    raters = sorted({one.rater for one in markings})
    given = {(one.rater, one.comparison.id): {span["label"] for span in one.spans} for one in markings}
    figures = []
    for label in sorted({name for names in given.values() for name in names}):
        table = {
            rater: [None if (said := given.get((rater, answer))) is None else label in said for answer in answers]
            for rater in raters
        }
        options = {"bootstrap": bootstrap, "seed": seed}
        figures += figures_of(f"spans.{label}", table, [prompts[one] for one in answers], "nominal", options)
    return figures


def _of_answer(markings: Sequence[Marking]) -> AnswerSpans:
    comparison = markings[0].comparison
    answer = comparison.responses[0]
    marks = [
        SpanMark(text=answer.text[span["start"] : span["end"]], rater=marking.rater,
                 **{name: span[name] for name in ("start", "end", "label", "comment")})
        for marking in markings
        for span in marking.spans
    ]  # fmt: skip
    return AnswerSpans(
        id=comparison.id,
        prompt=comparison.prompt.messages,
        completion=answer.text,
        spans=tuple(sorted(marks, key=lambda one: (one.start, one.end, one.label, one.rater))),
        raters=len({marking.rater for marking in markings}),
        finished=answer.finished,
        kind=comparison.prompt.kind,
    )
