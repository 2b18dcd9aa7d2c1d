"""What the browser sends when a rater votes, checked against what that rater was shown.

Answers are spoken of by their position on the screen, never by an id. ``strength`` runs from −3 (the first answer is
much better) through 0 (tie) to 3 (the second is much better).
"""

import unicodedata
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError

from alignment.records import ALONE, Outcome
from preference_ui.store.errors import Refusal
from preference_ui.store.queue_settings import GENERAL, QueueSettings, Single
from preference_ui.store.settings import DeskSettings

SKIP_REASONS = ("cannot_judge", "language", "unclear", "uncomfortable")
VERDICTS: dict[Single, tuple[Outcome, ...]] = {  # what may be said of an answer that stands alone
    "thumbs": ("up", "down"), "rewrites": ("edited", "up"), "scores": ("scored",), "spans": ("marked",),
}  # fmt: skip
FLAG_REASONS = ("unsafe", "broken", "personal_data")
MOST_SPANS = 100  # marks of one answer
LONGEST = 50_000  # characters of an answer that a rater writes
_KEPT = "\n\t\0"  # of the control characters


def as_typed(text: str) -> str:
    """What somebody wrote, with one sign for the end of a line, as a browser's text field has it, and without control
    characters: nobody sees them, and they do something where the text is read again. NUL stays: it is refused."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return "".join(one for one in lines if one in _KEPT or unicodedata.category(one) != "Cc")


Position = Annotated[StrictInt, Field(ge=0, le=8)]
Score = Annotated[StrictInt, Field(ge=1, le=5)]


class CorrectedAnswer(BaseModel):
    """A better answer, made from the one at ``position``."""

    model_config = ConfigDict(extra="forbid")
    position: Position
    text: Annotated[StrictStr, Field(min_length=1, max_length=LONGEST), AfterValidator(as_typed)]


class MarkedSpan(BaseModel):
    """A part of a single answer, from ``start`` up to ``end``, both in code points of its text."""

    model_config = ConfigDict(extra="forbid")
    start: Annotated[StrictInt, Field(ge=0)]
    end: Annotated[StrictInt, Field(ge=1)]
    label: Annotated[StrictStr, Field(max_length=24)]
    comment: Annotated[StrictStr, Field(max_length=500), AfterValidator(as_typed)] = ""


class SubmittedVote(BaseModel):
    """A vote as it comes over the wire."""

    model_config = ConfigDict(extra="forbid")
    outcome: Outcome
    strength: Annotated[StrictInt, Field(ge=-3, le=3)] | None = None
    ranking: Annotated[list[Annotated[list[Position], Field(min_length=1, max_length=9)]], Field(max_length=9)] = []
    criteria: dict[StrictStr, list[Score | None]] = {}
    reason: Annotated[StrictStr, Field(max_length=32)] = ""
    comment: Annotated[StrictStr, Field(max_length=2_000), AfterValidator(as_typed)] = ""
    correction: CorrectedAnswer | None = None
    spans: Annotated[list[MarkedSpan], Field(max_length=MOST_SPANS)] = []
    confirmed: StrictBool = False


class Judgement(BaseModel):
    """A verdict in terms of response ids: what is stored."""

    outcome: Outcome
    ranking: list[list[str]]
    strength: int | None
    criteria: dict[str, int]
    reason: str
    comment: str
    correction: dict[str, str] | None
    spans: list[dict[str, Any]] | None


def read_verdict(wire: Any) -> SubmittedVote:
    """Parses what was sent. Raises Refusal where it is not a verdict."""
    try:
        if storable(wire):
            return SubmittedVote.model_validate(wire)
    except (ValidationError, RecursionError):
        pass
    raise Refusal("malformed", "This vote could not be read. Please reload the page and try again.")


def storable(value: Any) -> bool:
    """Whether every text inside is one that any database keeps: no NUL, no half of a surrogate pair."""
    if isinstance(value, str):
        return "\x00" not in value and _is_whole(value)
    if isinstance(value, dict):
        return all(storable(key) and storable(item) for key, item in value.items())
    return all(map(storable, value)) if isinstance(value, list) else True


def _is_whole(text: str) -> bool:
    """Whether no half of a surrogate pair is in a text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def judge(
    verdict: SubmittedVote, answers: Mapping[str, str], settings: DeskSettings, queue: QueueSettings = GENERAL
) -> Judgement:
    """Turns positions into response ids. ``answers`` are those that were shown, by their ids, with the text of one that
    stands alone. Raises Refusal where the two
    do not fit, or the verdict is not what ``queue`` asks."""
    order = tuple(answers)
    if len(order) == 1:
        _refuse_unasked(verdict, queue)
    ranking, strength = _ranking(verdict, order)
    reasons = {"skipped": SKIP_REASONS, "flagged": FLAG_REASONS}.get(verdict.outcome)
    if verdict.reason not in (reasons or ("",)):
        raise Refusal("reason", "Please choose a reason from the list.")
    criteria = _criteria(verdict, order, settings)
    if verdict.outcome == "scored" and len(criteria) < len(settings.criteria):
        raise Refusal("incomplete", "Give every score first: press 1 to 5 for each.")
    return Judgement(
        outcome=verdict.outcome,
        ranking=ranking,
        strength=strength,
        criteria=criteria,
        reason=verdict.reason,
        comment=verdict.comment.strip(),
        correction=_correction(verdict, answers),
        spans=_spans(verdict, answers, queue),
    )


def _refuse_unasked(verdict: SubmittedVote, queue: QueueSettings) -> None:
    """Raises Refusal where a verdict on a single answer is not of the kind that its queue asks."""
    asked = VERDICTS[queue.single]
    if verdict.outcome not in ("skipped", "flagged", *asked):
        raise Refusal("malformed", "This vote does not fit what was shown. Please reload the page and try again.")
    if verdict.correction is not None and queue.single != "thumbs" and verdict.outcome != "edited":
        raise Refusal("malformed", "This vote does not fit what was shown. Please reload the page and try again.")


def _correction(verdict: SubmittedVote, answers: Mapping[str, str]) -> dict[str, str] | None:
    correction, order = verdict.correction, tuple(answers)
    if correction is not None and (correction.position >= len(order) or not correction.text.strip()):
        raise Refusal("malformed", "The corrected answer is empty or does not belong to this comparison.")
    unchanged = correction is None or correction.text == as_typed(answers[order[correction.position]])
    if verdict.outcome == "edited" and unchanged:
        raise Refusal("unchanged", "Change the answer first, or say that it is good as it is: press 1.")
    return None if correction is None else {"response": order[correction.position], "text": correction.text}


def _spans(verdict: SubmittedVote, answers: Mapping[str, str], queue: QueueSettings) -> list[dict[str, Any]] | None:
    """Marks in the order of the text, each once."""
    if verdict.outcome != "marked":
        if verdict.spans:
            raise Refusal("malformed", "This vote does not fit what was shown. Please reload the page and try again.")
        return None
    if not verdict.spans and not verdict.confirmed:
        raise Refusal("confirm", "You have marked nothing. Is there nothing to mark?")
    ((response, text),) = answers.items()
    known = {label.name for label in queue.labels}
    found = {}
    for span in verdict.spans:
        if span.label not in known or not span.start < span.end <= len(text):
            raise Refusal("spans", "These marks do not fit the answer. Please reload the page and try again.")
        found[span.start, span.end, span.label] = {"response": response, **span.model_dump()}
    return [found[place] for place in sorted(found)]


def _ranking(verdict: SubmittedVote, order: tuple[str, ...]) -> tuple[list[list[str]], int | None]:
    if (len(order) == 1) != (verdict.outcome in ALONE) and verdict.outcome not in ("skipped", "flagged"):
        raise Refusal("malformed", "This vote does not fit what was shown. Please reload the page and try again.")
    if verdict.outcome != "ranked":
        if verdict.ranking or verdict.strength is not None:
            raise Refusal("malformed", "A vote cannot rank the answers and reject them at once.")
        return [], None
    if len(order) == 2 and verdict.strength is not None and not verdict.ranking:
        first, second = order
        if verdict.strength == 0:
            return [[first, second]], 0
        best_first = [[first], [second]] if verdict.strength < 0 else [[second], [first]]
        return best_first, abs(verdict.strength)
    if len(order) == 2 or verdict.strength is not None:
        raise Refusal("malformed", "Please say which answer is better before you send the vote.")
    flat = [position for group in verdict.ranking for position in group]
    if sorted(flat) != list(range(len(order))):
        raise Refusal("incomplete", "Every answer must be ranked exactly once.")
    if verdict.ranking == [[position] for position in range(len(order))] and not verdict.confirmed:
        raise Refusal("confirm", "The order is as it was when you came. Is that your ranking?")
    return [[order[position] for position in group] for group in verdict.ranking], None


def _criteria(verdict: SubmittedVote, order: tuple[str, ...], settings: DeskSettings) -> dict[str, int]:
    known = {criterion.name for criterion in settings.criteria}
    scores: dict[str, int] = {}
    for name, given in verdict.criteria.items():
        if name not in known or len(given) != len(order):
            raise Refusal("criteria", "These scores do not fit the questions. Please reload the page and try again.")
        scores |= {f"{name}:{order[at]}": score for at, score in enumerate(given) if score is not None}
    return scores
