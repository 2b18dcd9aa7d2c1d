"""The work of judges: of the stage that asks one, and of a reward that does."""

import math
from collections.abc import Sequence
from typing import Any

from alignment.plan.texts import Pair
from alignment.plan.work import StageWork
from alignment.recipe.base import BASE
from alignment.recipe.graph import stage_inputs
from alignment.recipe.judges import AnyJudge, GenerativeJudge, judge_role, scores_alone
from alignment.recipe.rewards.judge import JudgeReward
from alignment.recipe.stages.feedback.judge import JudgeStage
from alignment.recipe.stages.pair_classifier import PairClassifierStage

BATCH = 64  # rows that a local judge writes together


def judge_stage(planner: Any, work: StageWork, stage: JudgeStage) -> None:
    """Each pair in both orders, or each answer alone; endpoints compute elsewhere."""
    drawn: list[Any] = [planner.recipe.stages[name] for name in stage_inputs(stage)["responses"]]
    prompts, new = planner.texts.prompts, max(one.sampling.max_new_tokens for one in drawn)
    asked = max(min(prompts.count, one.limit or prompts.count) for one in drawn)
    pairs = asked * min(stage.comparisons_per_prompt, math.comb(sum(one.per_prompt for one in drawn), 2))
    work.at_most = True
    judged(planner, work, stage.judge, pairs, prompts.lengths, new)


def judged(planner: Any, work: StageWork, judge: AnyJudge, pairs: float, lengths: Sequence[int], new: int) -> None:
    """The reading of so many pairs of answers of ``new`` tokens to prompts of these lengths."""
    if isinstance(judge, GenerativeJudge) and judge.endpoint is not None:
        asks = round((2 * len(judge.criteria) or 2) * pairs)
        budget = judge.endpoint.budget
        bound = "no budget bounds it" if budget is None else f"its budget: {budget.model_dump(exclude_none=True)}"
        work.remarks.append(f"an endpoint answers about {asks} questions ({judge.form}); {bound}")
        return
    planner.hold_policies(work, [judge.model or BASE] if judge_role(judge) == "judge" else [BASE])
    rows = 2.0 * pairs
    if isinstance(judge, GenerativeJudge):
        mean = sum(lengths) / max(1, len(lengths)) + 2 * new
        work.activities.append(planner.draw([math.ceil(mean)] * max(1, round(rows)), 1, 1, BATCH, judge.max_tokens))
    else:
        work.activities.append(planner.scored(rows, lengths, new if scores_alone(judge) else 2 * new, 32))


def pair_classifier(planner: Any, work: StageWork, stage: PairClassifierStage) -> None:
    """A reward model's work, but that each row has both answers in it."""

    def both(pair: Pair) -> Pair:
        return Pair(pair.prompt, pair.chosen + pair.rejected, pair.chosen + pair.rejected)

    planner.reward(work, stage, both)


def judge_online(
    planner: Any, work: StageWork, reward: JudgeReward, rows: float, lengths: Sequence[int], new: int
) -> None:
    """A judge's reading of answers alone, or of pairs in both orders; endpoints compute elsewhere."""
    questions, shown = (rows, new) if reward.alone else (2 * reward.opponents * rows, 2 * new)
    judge = reward.judge
    if isinstance(judge, GenerativeJudge) and judge.endpoint is not None:
        work.remarks.append(f"an endpoint answers about {questions:,.0f} questions as the reward's judge")
        return
    work.models.append(planner.size.parameters)
    work.activities.append(planner.scored(questions, lengths, shown, 32))
    if isinstance(judge, GenerativeJudge):
        mean = math.ceil(sum(lengths) / max(1, len(lengths)) + shown)
        work.activities.append(planner.draw([mean], questions, 1, BATCH, judge.max_tokens))
