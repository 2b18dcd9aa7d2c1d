"""The work of stages that have models write feedback, and the pairs that feedback comes to at most."""

import math
from typing import Any

from alignment.plan.kinds.judges import judge_online
from alignment.plan.texts import Pair, TokenLengths
from alignment.plan.work import StageWork
from alignment.recipe.base import BASE
from alignment.recipe.graph import judge_rewards, stage_inputs
from alignment.recipe.stages.feedback.ai_feedback import ConstitutionStage, SynthesisStage
from alignment.recipe.stages.feedback.rejection_sampling import RejectionSamplingStage

BATCH = 64  # rows that a local writer writes together
REQUEST = 40  # tokens of a principle and what is said around it, about


def made_pairs(planner: Any, source: Any) -> TokenLengths:
    """The pairs that a stage makes of sampled answers, at most and at their longest."""
    drawn, asked, new = _drawn(planner, source)
    answers = sum(one.per_prompt for one in drawn)
    if source.pairs_wanted() is not None and not source.compares_responses():  # people judge single answers
        shown = min(source.comparisons_per_prompt, answers)
        if "scores" in source.products():  # of each prompt's answers, every two
            return TokenLengths(asked * math.comb(shown, 2), _alike(planner, Pair, new))
        return TokenLengths(made_answers(planner, source).count, _alike(planner, Pair, new))
    if not source.compares_responses():  # each response is revised, and its revision is preferred
        return TokenLengths(asked * answers, _alike(planner, Pair, new))
    count = asked * min(source.comparisons_per_prompt, math.comb(answers, 2))
    count = min(count, source.pairs_wanted() or count)
    return TokenLengths(count, _alike(planner, Pair, new))


def made_answers(planner: Any, source: Any) -> TokenLengths:
    """The single answers, each with its prompt, that people are to judge, at most and at their longest."""
    drawn, asked, new = _drawn(planner, source)
    count = asked * min(source.comparisons_per_prompt, sum(one.per_prompt for one in drawn))
    lengths = tuple((prompt, new) for prompt in planner.texts.prompts.lengths)
    return TokenLengths(min(count, source.pairs_wanted()), lengths)


def made_demonstrations(planner: Any, source: Any) -> TokenLengths:
    """The revisions to imitate, or the best responses, at most and at their longest."""
    drawn, asked, new = _drawn(planner, source)
    lengths = tuple((prompt + new, new) for prompt in planner.texts.prompts.lengths)
    answers = sum(one.per_prompt for one in drawn)
    if source.pairs_wanted() is not None:  # people write them
        return TokenLengths(made_answers(planner, source).count, lengths)
    return TokenLengths(asked * min(answers, source.demonstrations_kept() or answers), lengths)


def _drawn(planner: Any, source: Any) -> tuple[list[Any], int, int]:
    """The stages that drew the answers, how many prompts they asked, and the longest answer in tokens."""
    drawn: list[Any] = [planner.recipe.stages[name] for name in stage_inputs(source)["responses"]]
    prompts = planner.texts.prompts
    new = max(one.sampling.max_new_tokens for one in drawn)
    new = max(new, source.written_tokens())
    return drawn, max(min(prompts.count, one.limit or prompts.count) for one in drawn), new


def _alike(planner: Any, kind: Any, new: int) -> tuple[Any, ...]:
    return tuple(kind(prompt, new, new) for prompt in planner.texts.prompts.lengths)


def constitution(planner: Any, work: StageWork, stage: ConstitutionStage) -> None:
    """A critique and a revision of every response in every round; endpoints compute elsewhere."""
    drawn, asked, _longest = _drawn(planner, stage)
    prompts, new = planner.texts.prompts, stage.writer.max_tokens
    responses = asked * sum(one.per_prompt for one in drawn)
    rows = stage.rounds * min(responses, stage.limit or responses)
    work.at_most = True
    if stage.writer.endpoint is not None:
        work.remarks.append(f"an endpoint writes about {2 * rows:,} critiques and revisions")
        return
    planner.hold_policies(work, [stage.writer.model or BASE])
    answer = max(one.sampling.max_new_tokens for one in drawn)
    for more in (REQUEST, 2 * REQUEST + new):  # the critique's prompt, then the revision's with the critique in it
        lengths = [length + answer + more for length in prompts.lengths]
        work.activities.append(planner.draw(lengths, rows / max(1, len(lengths)), 1, BATCH, new))
    work.sampled = 2 * rows * new


def synthesis(planner: Any, work: StageWork, stage: SynthesisStage) -> None:
    """Every response is drawn once, by one of the models; endpoints compute elsewhere."""
    prompts, new = planner.texts.prompts, stage.sampling.max_new_tokens
    count = min(prompts.count, stage.limit or prompts.count)
    answering = len(stage.models) + len(stage.endpoints)
    rows = count * stage.per_prompt
    here = round(rows * len(stage.models) / answering)
    work.at_most = True
    if stage.endpoints:
        work.remarks.append(f"endpoints answer about {rows - here:,} times")
    if not stage.models:
        return
    planner.hold_policies(work, stage.models)
    lengths = [length + REQUEST for length in prompts.lengths]
    work.activities.append(planner.draw(lengths, here / max(1, len(lengths)), 1, stage.batch_size, new))
    work.sampled = here * new


def rejection_sampling(planner: Any, work: StageWork, stage: RejectionSamplingStage) -> None:
    """Its rewards' reading of every response."""
    drawn, asked, new = _drawn(planner, stage)
    prompts = planner.texts.prompts
    rows = float(asked * sum(one.per_prompt for one in drawn))
    work.at_most = True
    for _ in range(planner.hold_reward_models(work, stage)):
        work.activities.append(planner.scored(rows, prompts.lengths, new, 32))
    for reward in judge_rewards(stage):
        judge_online(planner, work, reward, rows, list(prompts.lengths), new)
    if not work.activities:
        planner.programs(work, stage)
