"""The work of the stages that compare policies: evaluation, tournament, and the over-optimisation experiment."""

import math
from typing import Any

from alignment.plan.kinds.judges import judged
from alignment.plan.texts import TokenLengths
from alignment.plan.work import StageWork
from alignment.recipe.base import CHAMPION
from alignment.recipe.metrics import PassAtK, Perplexity
from alignment.recipe.stages.evaluate import EvaluateStage
from alignment.recipe.stages.experiments.benchmark import BenchmarkStage
from alignment.recipe.stages.experiments.overoptimisation import OveroptimisationStage
from alignment.recipe.stages.experiments.tournament import TournamentStage
from alignment.recipe.stages.spec import StageSettings


def _asked(planner: Any, limit: int | None, part: str) -> tuple[tuple[int, ...], int]:
    """The lengths of the held-out prompts that are known, and how many are asked."""
    held_out = planner.texts.asked_prompts
    count = held_out.count if part == "all" else math.ceil(held_out.count / 2)
    return held_out.lengths, min(count, limit or count)


def evaluate(planner: Any, work: StageWork, stage: EvaluateStage) -> None:
    """Everyone's answers, what the metrics ask of each model, the candidate's KL, and the rewards."""
    # The champion is not of this recipe; it is taken to be as large as what may follow it.
    names = [stage.model if name == CHAMPION else name for name in (stage.model, *stage.against)]
    models = len({stage.model, *stage.against})
    planner.hold_policies(work, [*dict.fromkeys(names), stage.reference])
    new, texts = stage.sampling.max_new_tokens, planner.texts
    if stage.prompts is None:
        asked, count = texts.asked_prompts.lengths, texts.asked_prompts.count
    else:
        pairs = texts.held_out_pairs
        asked, count = tuple(pair.prompt for pair in pairs.lengths), pairs.count
    count = min(count if stage.part == "all" else math.ceil(count / 2), stage.limit or count)
    scale = count / max(1, len(asked))
    put = planner.as_put(work, TokenLengths(len(asked), tuple(asked))).lengths
    votes, drawn = 1 if stage.prompting is None else stage.prompting.votes, stage.sampling_used().max_new_tokens
    for _ in range(models):
        planner.draw_turns(
            work, stage, put, count / max(1, len(put)), max(votes, stage.sampling.beams), stage.batch_size
        )
        for metric in stage.metrics:  # as if every prompt were of the kinds that they are counted on
            if isinstance(metric, PassAtK):
                work.activities.append(planner.draw(asked, scale, metric.samples, stage.batch_size, new))
            elif isinstance(metric, Perplexity):
                work.activities.append(planner.scored(count, asked, new, metric.batch_size))
    measured = min(stage.kl_prompts, count)
    planner.measure_kl(work, asked, measured, 1, stage.batch_size, new)
    policies, work.models = work.models, []  # the policies are freed before a reward model is loaded
    for _ in range(planner.hold_reward_models(work, stage)):
        work.activities.append(planner.scored(count * models, asked, new, stage.batch_size))
    if stage.judge is not None:
        judged(planner, work, stage.judge, count * len(set(stage.against)), asked, new)
    work.models = max(policies, work.models, key=sum)
    samples = sum(metric.samples for metric in stage.metrics if isinstance(metric, PassAtK))
    longest = (stage.longest_answer() or drawn) * votes
    work.sampled, work.at_most = count * models * (longest + samples * new) + measured * new, True


def benchmark(planner: Any, work: StageWork, stage: BenchmarkStage) -> None:
    """Every model's answers to every question in every form, as often as the form votes."""
    planner.hold_policies(work, stage.models)
    for form, prompts in planner.texts.put_prompts.get(work.name, {}).items():
        votes, new = stage.forms[form].votes, stage.form_sampling(stage.forms[form]).max_new_tokens
        draw = planner.draw(prompts.lengths, prompts.scale, votes, stage.batch_size, new)
        work.activities += [draw] * len(stage.models)
        work.sampled += prompts.count * votes * new * len(stage.models)
    work.at_most = True


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


def _moments(stage: StageSettings | None) -> int:
    """How many snapshots a policy has, its end included; an epoch's steps are not known here, so at most ten."""
    every, steps = (None, None) if stage is None else (stage.snapshot_steps(), stage.steps_planned())
    if every is None:
        return 1
    return math.ceil(steps / every) if steps else 10
