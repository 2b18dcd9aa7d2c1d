"""The work of the stages that compare policies: the tournament, and the over-optimisation experiment."""

import math
from typing import Any

from alignment.evaluation.settings import OveroptimisationStage, TournamentStage
from alignment.plan.judges import judged
from alignment.plan.work import StageWork


def _asked(planner: Any, limit: int | None, part: str) -> tuple[tuple[int, ...], int]:
    """The lengths of the held-out prompts that are known, and how many are asked."""
    held_out = planner.texts.held_out_prompts
    count = held_out.count if part == "all" else math.ceil(held_out.count / 2)
    return held_out.lengths, min(count, limit or count)


def tournament(planner: Any, work: StageWork, stage: TournamentStage) -> None:
    """Everyone's answers, the best of several of the start's, and each policy's KL."""
    players = [stage.model, *stage.policies]
    planner.hold_policies(work, players)
    asked, count = _asked(planner, stage.limit, stage.part)
    scale, new = count / max(1, len(asked)), stage.sampling.max_new_tokens
    work.activities += [planner.draw(asked, scale, 1, stage.batch_size, new)] * len(players)
    measured = min(stage.kl_prompts, count)
    for _ in stage.policies:
        planner.measure_kl(work, asked, measured, 1, stage.batch_size, new)
    work.sampled = (count * len(players) + measured * len(stage.policies)) * new
    if stage.best_of > 1:
        work.activities.append(planner.draw(asked, scale, stage.best_of, stage.batch_size, new))
        for _ in range(planner.hold_reward_models(work, stage)):
            work.activities.append(planner.scored(count * stage.best_of, asked, new, stage.batch_size))
        work.sampled += count * stage.best_of * new
    if stage.judge is not None:
        games = math.comb(len(players) + (stage.best_of > 1), 2)
        judged(planner, work, stage.judge, count * games, asked, new)
    work.at_most = True


def overoptimisation(planner: Any, work: StageWork, stage: OveroptimisationStage) -> None:
    """Answers of the start and of every snapshot, each scored, and its KL."""
    planner.hold_policies(work, [stage.model, *stage.policies])
    asked, count = _asked(planner, stage.limit, stage.part)
    new, scale = stage.max_new_tokens, count / max(1, len(asked))
    moments = sum(_moments(planner.recipe.stages.get(name)) for name in stage.policies)
    work.adapters *= max(1, moments // max(1, len(stage.policies)))
    rows = [stage.best_of] + [stage.per_prompt] * moments
    models = planner.hold_reward_models(work, stage)
    for per_prompt in rows:
        work.activities.append(planner.draw(asked, scale, per_prompt, stage.batch_size, new))
        for _ in range(models):
            work.activities.append(planner.scored(count * per_prompt, asked, new, stage.batch_size))
    for _ in range(moments):
        planner.measure_kl(work, asked, count, stage.per_prompt, stage.batch_size, new)
    work.sampled, work.at_most = sum(rows) * count * new, True


def _moments(stage: Any) -> int:
    """How many snapshots a policy has, its end included; an epoch's steps are not known here, so at most ten."""
    every, steps = getattr(stage, "snapshot_every", None), getattr(stage, "steps", None)
    if every is None:
        return 1
    return math.ceil(steps / every) if steps else 10
