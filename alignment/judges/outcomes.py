"""An AI judge in the raters' place: outcomes of an evaluation's or a tournament's pairs, and how far to trust them.

Every pair is judged in both orders; where they disagree it is a tie. A pair without a verdict is a tie as well, which
is counted and said beside every figure: an outcome is wanted for each prompt, and none is guessed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignment.digests import content_id
from alignment.errors import StageError
from alignment.judges import calibration
from alignment.judges.batches import Block, blocks_of, judge_all
from alignment.judges.factory import calibration_of
from alignment.judges.report import judge_words
from alignment.preferences.outcomes import TIE
from alignment.recipe.judges import pays, scores_alone
from alignment.records import Comparison, Prompt, Response
from alignment.stage import StageContext

MAX_UNREAD = 0.5  # of the pairs; with more, the figures would say nothing of the models
Answers = Sequence[Response]


@dataclass(frozen=True, slots=True)
class Judged:
    """Outcomes for every game, 1 where the left answer is better; who judged, in words; and how far to trust it."""

    outcomes: dict[str, list[float]]
    words: str
    calibrated: bool
    unread: int


def judged_outcomes(
    settings: Any,
    context: StageContext,
    prompts: Sequence[Prompt],
    games: Mapping[str, tuple[Answers, Answers]],
) -> Judged:
    """One outcome for each prompt of each game, whose answers follow the order of ``prompts``; equal texts tie.

    ``settings`` are a stage's, with ``judge`` and ``calibrated_by``. Without a calibration the bonus of the first place
    is fitted on these pairs themselves, which needs no votes. Raises StageError where the judge cannot be asked, gives
    too few verdicts, or another one was calibrated.
    """
    report = calibration_of(settings.calibrated_by, settings.judge, context)
    asked = [(name, place, pair) for name, both in games.items() for place, pair in _comparisons(prompts, *both)]
    if scores_alone(settings.judge) and not pays(settings.judge):
        # Pairs of one prompt stand together, so that no answer is scored in two pieces.
        asked.sort(key=lambda one: one[1])
    found = judge_all(settings, context, _blocks(settings, asked), lambda _verdicts: None)
    unread = sum(not one.read for one in found.judgements)
    if asked and unread > MAX_UNREAD * len(asked):
        raise StageError(
            f"the judge ({found.judge}) gave no verdict on {unread} of {len(asked)} pairs; take a better judge, or "
            "another form of question"
        )
    correction = report.correction if report else calibration.fit(found.judgements, {}, position=True)
    values = {"left": 1.0, "right": 0.0, "tie": TIE, None: TIE}
    outcomes = {name: [TIE] * len(prompts) for name in games}
    for (name, place, _pair), judgement in zip(asked, found.judgements, strict=True):
        outcomes[name][place] = values[correction.decision(judgement)]
    calibrated = report is not None and report.calibrated
    words = judge_words(found.judge, report)
    if unread:
        words += f"; {unread} of {len(asked)} pairs got no verdict and count as ties"
    return Judged(outcomes, words, calibrated, unread)


def _blocks(settings: Any, asked: Sequence[tuple[str, int, Comparison]]) -> list[Block]:
    """The pieces; an endpoint is asked about a whole game at a time, since its questions go side by side."""
    if not pays(settings.judge):
        return blocks_of([pair for _name, _place, pair in asked])
    games: dict[str, list[Comparison]] = {}
    for name, _place, pair in asked:
        games.setdefault(name, []).append(pair)
    return [tuple(pairs) for pairs in games.values()]


def _comparisons(prompts: Sequence[Prompt], left: Answers, right: Answers) -> list[tuple[int, Comparison]]:
    """The pairs of different texts, each with its prompt's place."""
    return [
        (
            place,
            Comparison(
                id=content_id(["evaluation", prompt.id, one.id, other.id]), prompt=prompt, responses=(one, other)
            ),
        )
        for place, (prompt, one, other) in enumerate(zip(prompts, left, right, strict=True))
        if one.text.strip() != other.text.strip()
    ]
