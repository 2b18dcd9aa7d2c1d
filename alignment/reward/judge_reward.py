"""A judge as a reward: answers to one prompt are compared with each other while the policy trains, or scored alone."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from alignment.digests import content_id
from alignment.errors import StageError
from alignment.judges.factory import build_judge, calibration_of
from alignment.judges.prompts import shown_answer
from alignment.judges.protocol import JudgeCorrection, sigmoid
from alignment.recipe.rewards.judge import JudgeReward
from alignment.recipe.rewards.settings import reward_name
from alignment.records import Comparison, Prompt, Response, Sampling
from alignment.reward.protocol import Reward, RewardInput
from alignment.stage import StageContext


def judge_reward(settings: JudgeReward, context: StageContext) -> Reward:
    """The reward of :class:`~alignment.recipe.rewards.judge.JudgeReward`.

    Raises StageError where its calibration is another judge's.
    """
    report = calibration_of(settings.calibrated_by, settings.judge, context)
    correction = report.correction if report else JudgeCorrection()
    judge: Any = build_judge(settings.judge, context, f"judge:{reward_name(settings)}")
    if settings.alone:

        async def alone(answers: Sequence[RewardInput]) -> list[float]:
            shown = [shown_answer(answer.text, finished=answer.finished) for answer in answers]
            found = await judge.score([answer.prompt for answer in answers], shown)
            return _filled(found, settings)

        return alone

    async def compared(answers: Sequence[RewardInput]) -> list[float]:
        comparisons = _pairings(answers, settings.opponents)
        if not comparisons:
            return [0.5] * len(answers)  # every prompt has one answer, however often: none is better than another
        won: dict[str, list[float]] = {}
        for comparison, judgement in zip(comparisons, await judge.judge(comparisons), strict=True):
            odds = correction.orders(judgement)
            if odds is not None:
                left = fmean(sigmoid(one / correction.temperature) for one in odds)
                for response, probability in zip(comparison.responses, (left, 1 - left), strict=True):
                    won.setdefault(response.id, []).append(probability)
        met = {response.id for comparison in comparisons for response in comparison.responses}
        scores: list[float | None] = []
        for answer in answers:
            key = _response(answer).id
            scores.append(fmean(won[key]) if key in won else None if key in met else 0.5)
        return _filled(scores, settings)

    return compared


def _pairings(answers: Sequence[RewardInput], opponents: int) -> list[Comparison]:
    """Each distinct answer with the next ``opponents`` of its prompt's, in a ring; every pair once."""
    groups: dict[str, tuple[Prompt, dict[str, Response]]] = {}
    for answer in answers:
        response = _response(answer)
        groups.setdefault(answer.prompt.id, (answer.prompt, {}))[1].setdefault(response.id, response)
    made: dict[frozenset[str], Comparison] = {}
    for prompt, distinct in groups.values():
        responses = list(distinct.values())
        for place, left in enumerate(responses):
            for step in range(1, 1 + min(opponents, len(responses) - 1)):
                right = responses[(place + step) % len(responses)]
                key = frozenset((left.id, right.id))
                identifier = content_id(["rewarded", prompt.id, *sorted(key)])
                made.setdefault(key, Comparison(id=identifier, prompt=prompt, responses=(left, right)))
    return list(made.values())


def _response(answer: RewardInput) -> Response:
    cut = [] if answer.finished else ["cut off"]
    identifier = content_id(["response", answer.prompt.id, answer.text, *cut])
    return Response(
        id=identifier, prompt_id=answer.prompt.id, text=answer.text, model="policy", sampling=Sampling(), seed=0,
        tokens=answer.tokens, finished=answer.finished,
    )  # fmt: skip


def _filled(scores: Sequence[float | None], settings: JudgeReward) -> list[float]:
    """The scores; where there is none, the mean of the others. Raises StageError where too many are missing."""
    read = [score for score in scores if score is not None]
    missing = len(scores) - len(read)
    if not read or missing > settings.max_unread * len(scores):
        raise StageError(
            f"the judge gave no verdict on {missing} of {len(scores)} answers, and max_unread is "
            f"{settings.max_unread:g}; take a better judge, or another form of question"
        )
    middle = fmean(read)
    return [middle if score is None else score for score in scores]
