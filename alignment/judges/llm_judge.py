"""The judge that writes its verdict: whoever answers, what is asked and how it is read are the same."""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from alignment.judges import prompts as templates
from alignment.judges.prompts import JudgePrompt, conversation, parse, shown_answers
from alignment.judges.protocol import CERTAIN, JudgeUsage, PairJudgement, bounded, gives_orders
from alignment.recipe.judges import GenerativeJudge
from alignment.records import Comparison, Prompt

MOST = len(templates.LETTERS)  # answers in one ranking


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model wrote; ``text`` is None where it wrote nothing, and ``note`` says why.

    ``finished`` is False where it was cut off at its longest length. ``tokens`` counts it where that is known.
    """

    text: str | None
    note: Literal["", "failed", "unasked"] = ""
    finished: bool = True
    tokens: int = 0


class Wording(Protocol):
    """How much is written, and how freely."""

    @property
    def max_tokens(self) -> int: ...

    @property
    def temperature(self) -> float: ...


class Asker(Protocol):
    """Whoever answers questions in writing."""

    @property
    def tally(self) -> JudgeUsage: ...

    async def ask(self, questions: Sequence[JudgePrompt], /) -> list[Reply]: ...


@dataclass(frozen=True, slots=True)
class Reading:
    """One order's verdict as log-odds for the left answer; None where there is none."""

    odds: float | None
    note: Literal["", "failed", "unasked"] = ""
    reason: str = ""


Read = Mapping[Hashable, tuple[dict[str, Any] | None, Reply]]


class WritingJudge:
    """See :class:`~alignment.recipe.judges.GenerativeJudge`."""

    def __init__(self, settings: GenerativeJudge, asker: Asker, name: str) -> None:
        self.settings, self.asker, self.name = settings, asker, name

    @property
    def tally(self) -> JudgeUsage:
        return self.asker.tally

    async def judge(self, comparisons: Sequence[Comparison], /) -> list[PairJudgement]:
        shown = [one for one in comparisons if not any(gives_orders(response.text) for response in one.responses)]
        forms = {"pairwise": self._pairwise, "score": self._score, "ranking": self._ranking, "rubric": self._rubric}
        questions, read = forms[self.settings.form](shown)
        keys = list(questions)
        replies = await self.asker.ask([questions[key] for key in keys])
        parsed = {
            key: (None if reply.text is None else parse(reply.text, questions[key].schema), reply)
            for key, reply in zip(keys, replies, strict=True)
        }
        known = {one.id: _judgement(one, read(one, 0, parsed), read(one, 1, parsed)) for one in shown}
        return [known.get(one.id) or PairJudgement(comparison_id=one.id, note="suspect") for one in comparisons]

    async def score(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float | None]:
        """Each answer's score in [0, 1] by itself, of form ``score``; None where none could be read."""
        shown = [place for place, text in enumerate(texts) if not gives_orders(text)]
        questions = [
            templates.score(self.settings, conversation(prompts[place].messages), texts[place]) for place in shown
        ]
        scores: list[float | None] = [None] * len(texts)
        for place, question, reply in zip(shown, questions, await self.asker.ask(questions), strict=True):
            found = None if reply.text is None else parse(reply.text, question.schema)
            scores[place] = None if found is None else (found["score"] - 1) / (templates.BEST_SCORE - 1)
        return scores

    def _pairwise(
        self, comparisons: Sequence[Comparison]
    ) -> tuple[dict[Hashable, JudgePrompt], Callable[..., Reading]]:
        questions: dict[Hashable, JudgePrompt] = {
            (one.id, order): templates.pairwise(self.settings, *_texts(one, order))
            for one in comparisons
            for order in (0, 1)
        }
        return questions, lambda one, order, read: _verdict(read, (one.id, order), order)

    def _rubric(self, comparisons: Sequence[Comparison]) -> tuple[dict[Hashable, JudgePrompt], Callable[..., Reading]]:
        criteria = self.settings.criteria
        questions: dict[Hashable, JudgePrompt] = {
            (one.id, order, criterion.name): templates.pairwise(self.settings, *_texts(one, order), criterion)
            for one in comparisons
            for order in (0, 1)
            for criterion in criteria
        }

        def combined(one: Comparison, order: int, read: Read) -> Reading:
            parts = [_verdict(read, (one.id, order, criterion.name), order) for criterion in criteria]
            if (bad := next((part for part in parts if part.odds is None), None)) is not None:
                return bad
            total = sum(criterion.weight for criterion in criteria)
            won = sum(c.weight * math.copysign(1, part.odds or 0) * (part.odds != 0)
                      for c, part in zip(criteria, parts, strict=True))  # fmt: skip
            reasons = [f"{c.name}: {part.reason}" for c, part in zip(criteria, parts, strict=True) if part.reason]
            return Reading(_odds((1 + won / total) / 2), reason="; ".join(reasons))

        return questions, combined

    def _score(self, comparisons: Sequence[Comparison]) -> tuple[dict[Hashable, JudgePrompt], Callable[..., Reading]]:
        questions: dict[Hashable, JudgePrompt] = {
            (one.prompt.id, text): templates.score(self.settings, conversation(one.prompt.messages), text)
            for one in comparisons
            for text in shown_answers(one)
        }

        def lead(one: Comparison, _order: int, read: Read) -> Reading:
            found = [read[one.prompt.id, text] for text in shown_answers(one)]
            if (bad := next((reply for value, reply in found if value is None), None)) is not None:
                return Reading(None, bad.note)
            left, right = (value for value, _reply in found)
            assert left is not None
            assert right is not None
            reason = " / ".join(str(value["reason"]) for value in (left, right) if "reason" in value)
            return Reading(bounded(float(left["score"] - right["score"])), reason=reason)

        return questions, lead

    def _ranking(self, comparisons: Sequence[Comparison]) -> tuple[dict[Hashable, JudgePrompt], Callable[..., Reading]]:
        """One question for all answers to a prompt, at most ``MOST``; further ones make questions of their own."""
        groups: list[tuple[Prompt, list[str]]] = []
        place: dict[str, int] = {}
        open_group: dict[str, int] = {}
        for one in comparisons:
            fresh = shown_answers(one)
            number = open_group.get(one.prompt.id, -1)
            if number < 0 or len({*groups[number][1], *fresh}) > MOST:
                number = open_group[one.prompt.id] = len(groups)
                groups.append((one.prompt, []))
            texts = groups[number][1]
            texts += [text for text in dict.fromkeys(fresh) if text not in texts]
            place[one.id] = number
        questions: dict[Hashable, JudgePrompt] = {
            (number, order): templates.ranking(
                self.settings, conversation(prompt.messages), texts if order == 0 else texts[::-1]
            )
            for number, (prompt, texts) in enumerate(groups)
            for order in (0, 1)
        }

        def lead(one: Comparison, order: int, read: Read) -> Reading:
            value, reply = read[place[one.id], order]
            if value is None:
                return Reading(None, reply.note)
            texts = groups[place[one.id]][1]
            listed = texts if order == 0 else texts[::-1]
            ranked = [listed[templates.LETTERS.index(letter)] for letter in value["ranking"]]
            left, right = map(ranked.index, shown_answers(one))
            return Reading(CERTAIN if left < right else -CERTAIN, reason=str(value.get("reason", "")))

        return questions, lead


def _texts(comparison: Comparison, order: int) -> tuple[str, str, str]:
    left, right = shown_answers(comparison)
    question = conversation(comparison.prompt.messages)
    return (question, left, right) if order == 0 else (question, right, left)


def _verdict(read: Read, key: Hashable, order: int) -> Reading:
    value, reply = read[key]
    if value is None:
        return Reading(None, reply.note)
    odds = {"A": CERTAIN, "B": -CERTAIN, "tie": 0.0}[value["verdict"]]
    return Reading(odds if order == 0 else 0.0 - odds, reason=str(value.get("reason", "")))


def _odds(probability: float) -> float:
    if probability in (0.0, 1.0):
        return CERTAIN if probability else -CERTAIN
    return bounded(math.log(probability / (1 - probability)))


def _judgement(comparison: Comparison, first: Reading, last: Reading) -> PairJudgement:
    notes = [reading.note for reading in (first, last) if reading.odds is None]
    note: Literal["", "failed", "unasked"] = next((one for one in ("unasked", "failed") if one in notes), "")
    return PairJudgement(
        comparison_id=comparison.id,
        left_first=first.odds,
        left_last=last.odds,
        note=note,
        reasons=tuple(dict.fromkeys(reading.reason for reading in (first, last) if reading.reason)),
    )
