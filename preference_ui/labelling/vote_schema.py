"""What the browser sends when a rater votes, checked against what that rater was shown.

Answers are spoken of by their position on the screen, never by an id. ``strength`` runs from −3 (the first answer is
much better) through 0 (tie) to 3 (the second is much better).
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError

from alignment.records import Outcome
from preference_ui.store.errors import Refusal
from preference_ui.store.settings import DeskSettings

SKIP_REASONS = ("cannot_judge", "language", "unclear", "uncomfortable")
FLAG_REASONS = ("unsafe", "broken", "personal_data")
Position = Annotated[StrictInt, Field(ge=0, le=8)]
Score = Annotated[StrictInt, Field(ge=1, le=5)]


class CorrectedAnswer(BaseModel):
    """A better answer, made from the one at ``position``."""

    model_config = ConfigDict(extra="forbid")
    position: Position
    text: Annotated[StrictStr, Field(min_length=1, max_length=20_000)]


class SubmittedVote(BaseModel):
    """A vote as it comes over the wire."""

    model_config = ConfigDict(extra="forbid")
    outcome: Outcome
    strength: Annotated[StrictInt, Field(ge=-3, le=3)] | None = None
    ranking: Annotated[list[Annotated[list[Position], Field(min_length=1, max_length=9)]], Field(max_length=9)] = []
    criteria: dict[StrictStr, list[Score | None]] = {}
    reason: Annotated[StrictStr, Field(max_length=32)] = ""
    comment: Annotated[StrictStr, Field(max_length=2_000)] = ""
    correction: CorrectedAnswer | None = None
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


def judge(verdict: SubmittedVote, order: tuple[str, ...], settings: DeskSettings) -> Judgement:
    """Turns positions into response ids. ``order`` are the ids as shown. Raises Refusal where the two do not fit."""
    ranking, strength = _ranking(verdict, order)
    reasons = {"skipped": SKIP_REASONS, "flagged": FLAG_REASONS}.get(verdict.outcome)
    if verdict.reason not in (reasons or ("",)):
        raise Refusal("reason", "Please choose a reason from the list.")
    correction = verdict.correction
    if correction is not None and (correction.position >= len(order) or not correction.text.strip()):
        raise Refusal("malformed", "The corrected answer is empty or does not belong to this comparison.")
    return Judgement(
        outcome=verdict.outcome,
        ranking=ranking,
        strength=strength,
        criteria=_criteria(verdict, order, settings),
        reason=verdict.reason,
        comment=verdict.comment.strip(),
        correction=None if correction is None else {"response": order[correction.position], "text": correction.text},
    )


def _ranking(verdict: SubmittedVote, order: tuple[str, ...]) -> tuple[list[list[str]], int | None]:
    if (len(order) == 1) != (verdict.outcome in ("up", "down")) and verdict.outcome not in ("skipped", "flagged"):
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
