"""An AI judge in the raters' place: outcomes of an evaluation's or a tournament's pairs, and how far to trust them.

Every pair is judged in both orders; where they disagree it is a tie. A pair without a verdict is a tie as well, which
is counted and said beside every figure: an outcome is wanted for each prompt, and none is guessed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alignment.data.digests import content_id
from alignment.data.jsonl import read_records, write_records
from alignment.evaluation.judging import TIE
from alignment.faults import StageError
from alignment.preferences.judges import calibration
from alignment.preferences.judges.build import build_judge, calibration_of
from alignment.preferences.judges.protocol import Judgement, wait_for
from alignment.preferences.judges.report import judge_words
from alignment.preferences.judges.settings import AnyJudge, pays
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
    settings: AnyJudge,
    calibrated_by: str | None,
    context: StageContext,
    prompts: Sequence[Prompt],
    games: Mapping[str, tuple[Answers, Answers]],
) -> Judged:
    """One outcome for each prompt of each game, whose answers follow the order of ``prompts``; equal texts tie.

    Without a calibration the bonus of the first place is fitted on these pairs themselves, which needs no votes.
    Raises StageError where the judge cannot be asked, gives too few verdicts, or another one was calibrated.
    """
    report = calibration_of(calibrated_by, settings, context)
    judge = build_judge(settings, context)
    asked = {name: _comparisons(prompts, *both) for name, both in games.items()}
    judged: dict[str, list[Judgement]] = {}
    for name, comparisons in asked.items():
        path = context.checkpoints / f"judged-{content_id([one.id for one in comparisons.values()])}.jsonl"
        if path.exists() and not pays(settings):  # an endpoint's answers are kept by themselves, and must be counted
            judged[name] = read_records(path, Judgement)
        else:
            with context.working():
                judged[name] = wait_for(judge.judge(list(comparisons.values()))) if comparisons else []
            if comparisons:
                write_records(path, judged[name])
    every = [one for found in judged.values() for one in found]
    unread = sum(not one.read for one in every)
    if every and unread > MAX_UNREAD * len(every):
        raise StageError(
            f"the judge ({judge.name}) gave no verdict on {unread} of {len(every)} pairs; take a better judge, or "
            "another form of question"
        )
    correction = report.correction if report else calibration.fit(every, {}, position=True)
    values = {"left": 1.0, "right": 0.0, "tie": TIE, None: TIE}
    outcomes = {name: [TIE] * len(prompts) for name in games}
    for name, comparisons in asked.items():
        for place, judgement in zip(comparisons, judged[name], strict=True):
            outcomes[name][place] = values[correction.decision(judgement)]
    calibrated = report is not None and report.calibrated
    words = judge_words(judge.name, report)
    if unread:
        words += f"; {unread} of {len(every)} pairs got no verdict and count as ties"
    return Judged(outcomes, words, calibrated, unread)


def _comparisons(prompts: Sequence[Prompt], left: Answers, right: Answers) -> dict[int, Comparison]:
    """The pairs of different texts, by the prompt's place."""
    return {
        place: Comparison(
            id=content_id(["evaluation", prompt.id, one.id, other.id]), prompt=prompt, responses=(one, other)
        )
        for place, (prompt, one, other) in enumerate(zip(prompts, left, right, strict=True))
        if one.text.strip() != other.text.strip()
    }
