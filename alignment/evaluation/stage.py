"""The stage ``evaluate``: the candidate against its opponents on held-out prompts.

It writes ``evaluation.json`` and ``samples.jsonl`` (both as :mod:`alignment.evaluation.results` says), and
``metrics.json`` with what a gate may ask for. A model's answers are kept as a checkpoint, so that a run that was
stopped does not sample them again.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from alignment.chat import render_answer, render_prompt
from alignment.data.digests import content_id
from alignment.data.jsonl import read_records, write_records
from alignment.data.prompts import load_prompts
from alignment.evaluation.judging import rubric_outcomes, score_outcomes
from alignment.evaluation.kl import KlEstimate, kl_estimate, response_kl
from alignment.evaluation.metric_names import evaluated_models
from alignment.evaluation.models import PolicyPool
from alignment.evaluation.results import evaluation, metrics, samples
from alignment.evaluation.reward_metrics import score_answers
from alignment.faults import StageError
from alignment.models.loading import load_reward_model
from alignment.preferences.raters import simulated_raters
from alignment.preferences.rubric import load_rubric
from alignment.recipe import BASE, EvaluateStage
from alignment.records import Artifact, Prompt, Response, Sampling
from alignment.reward.build import build_rewards
from alignment.reward.model import score
from alignment.rollouts.stage import response_seed
from alignment.rollouts.transformers_engine import TransformersEngine
from alignment.stage import Progress, StageContext, StageResult
from alignment.workspace import write_text

Answers = dict[str, list[Response]]


def run(settings: EvaluateStage, context: StageContext) -> StageResult:
    """Samples, judges and measures. Raises StageError where no held-out prompt is there to ask."""
    prompts = held_out_prompts(settings, context)
    work = _Work(settings, context, prompts)
    pool = PolicyPool(context.inputs[BASE], context.recipe)
    answers: Answers = {}
    for name in reversed(evaluated_models(settings)):  # the candidate last: the KL needs it next
        answers[name] = _answers(work, pool, context.inputs[name])
        pool.keep_only(context.inputs[settings.model], context.inputs[settings.reference])
    kl = _kl(work, pool)
    del pool

    rewards = _rewards(work, answers)
    outcomes, judges = _judge(work, answers, rewards)
    ordered = {name: answers[name] for name in evaluated_models(settings)}
    with context.working():
        scores = score_answers(build_rewards(settings.rewards, context), prompts, ordered) if settings.rewards else None
    found = evaluation(settings, prompts, answers, outcomes, kl=kl, judges=judges, scores=scores)
    values = metrics(settings, found)
    write_text(context.output / "evaluation.json", found.model_dump_json(indent=1) + "\n")
    write_text(context.output / "metrics.json", json.dumps(values, indent=1) + "\n")
    write_records(context.output / "samples.jsonl", samples(prompts, ordered, outcomes, rewards, scores))
    return StageResult("evaluation", values, tokens_sampled=work.tokens)


def held_out_prompts(settings: EvaluateStage, context: StageContext) -> list[Prompt]:
    """The prompts to ask: of the stage that ``settings.prompts`` names, else the held-out share of data.prompts.

    ``limit`` keeps those with the smallest ids, which are digests: no part of the file is preferred.
    """
    if settings.prompts is not None:
        path = Path(context.inputs[settings.prompts].path) / "prompts.jsonl"
        prompts = read_records(path, Prompt)
    elif "prompts" in context.data:
        path = context.data["prompts"]
        _train, prompts = load_prompts(path, context.recipe.data.held_out)
    else:
        raise StageError(f"{context.name}: no prompts to ask; set data.prompts, or stages.{context.name}.prompts")
    if not prompts:
        raise StageError(f"{path} has no held-out prompts; add prompts, or raise data.held_out")
    chosen = {prompt.id for prompt in sorted(prompts, key=lambda prompt: prompt.id)[: settings.limit]}
    return [prompt for prompt in prompts if prompt.id in chosen]


class _Work:
    """What the steps share: settings, prompts, and how far they are."""

    def __init__(self, settings: EvaluateStage, context: StageContext, prompts: Sequence[Prompt]) -> None:
        self.settings, self.context, self.prompts = settings, context, prompts
        self.seed = context.recipe.seed
        self.kl_prompts = sorted(prompts, key=lambda prompt: prompt.id)[: settings.kl_prompts]
        self.total = len(evaluated_models(settings)) * len(prompts) + 2 * len(self.kl_prompts)
        self.done = 0
        self.tokens = 0

    def advance(self, steps: int, tokens: int = 0) -> None:
        self.done += steps
        self.tokens += tokens
        self.context.report(Progress(self.done, self.total, {}, self.tokens))


def _answers(work: _Work, pool: PolicyPool, artifact: Artifact) -> list[Response]:
    """One model's answer to every prompt, in their order."""
    path = work.context.checkpoints / f"answers-{artifact.digest[:16]}.jsonl"
    if path.exists():
        responses = read_records(path, Response)
    else:
        responses = _sample(work, pool, artifact, work.prompts, work.settings.sampling, index=0)
        write_records(path, responses)
    work.advance(len(responses), sum(response.tokens for response in responses))
    return responses


def _sample(
    work: _Work, pool: PolicyPool, artifact: Artifact, prompts: Sequence[Prompt], sampling: Sampling, index: int
) -> list[Response]:
    """One response to each prompt. Every model draws with the same seeds, which takes noise out of their comparison."""
    seeds = [response_seed(work.seed, prompt.id, index) for prompt in prompts]
    policy = pool.use(artifact)
    with work.context.working():
        engine = TransformersEngine(
            policy.model, policy.tokenizer, stop_ids=policy.stop_ids, batch_size=work.settings.batch_size
        )
        tokens = [render_prompt(policy.tokenizer, prompt.messages) for prompt in prompts]
        completions = engine.generate(tokens, sampling=sampling, seeds=seeds)
    return [
        Response(
            id=content_id(["answer", artifact.digest, prompt.id, seed]),
            prompt_id=prompt.id,
            text=completion.text,
            model=str(artifact.ref()),
            sampling=sampling,
            seed=seed,
            tokens=len(completion.tokens),
            finished=completion.finished,
        )
        for prompt, seed, (completion,) in zip(prompts, seeds, completions, strict=True)
    ]


def _kl(work: _Work, pool: PolicyPool) -> KlEstimate:
    """KL(candidate‖reference) on responses that the candidate draws at temperature 1."""
    candidate = work.context.inputs[work.settings.model]
    reference = work.context.inputs[work.settings.reference]
    longest = work.settings.sampling.max_new_tokens
    seeds = [response_seed(work.seed, prompt.id, 1) for prompt in work.kl_prompts]
    policy = pool.use(candidate)
    with work.context.working():
        engine = TransformersEngine(
            policy.model, policy.tokenizer, stop_ids=policy.stop_ids, batch_size=work.settings.batch_size
        )
        prompts = [render_prompt(policy.tokenizer, prompt.messages) for prompt in work.kl_prompts]
        drawn = engine.generate(prompts, sampling=Sampling(temperature=1.0, max_new_tokens=longest), seeds=seeds)
    work.advance(len(drawn), sum(len(completion.tokens) for (completion,) in drawn))
    values = []
    for prompt, (completion,) in zip(prompts, drawn, strict=True):
        with work.context.working():
            values.append(
                response_kl(lambda: pool.use(candidate), lambda: pool.use(reference), prompt, completion.tokens)
            )
        work.advance(1)
    return kl_estimate(values, max_new_tokens=longest, seed=work.seed)


def _rewards(work: _Work, answers: Mapping[str, Sequence[Response]]) -> dict[str, list[float]]:
    """The reward model's score of every answer, by model; equal answers to a prompt are scored once."""
    if work.settings.reward is None:
        return {}
    model, tokenizer = load_reward_model(work.context.inputs[work.settings.reward], work.context.recipe)
    wanted = {
        (prompt.id, response.text): prompt
        for responses in answers.values()
        for prompt, response in zip(work.prompts, responses, strict=True)
    }
    with work.context.working():
        sequences = [
            render_prompt(tokenizer, prompt.messages) + render_answer(tokenizer, prompt.messages, text)
            for (_id, text), prompt in wanted.items()
        ]
        scores = dict(zip(wanted, score(model, tokenizer, sequences, batch_size=work.settings.batch_size), strict=True))
    return {name: [scores[r.prompt_id, r.text] for r in responses] for name, responses in answers.items()}


def _judge(
    work: _Work, answers: Mapping[str, Sequence[Response]], rewards: Mapping[str, Sequence[float]]
) -> tuple[dict[str, dict[str, list[float]]], dict[str, str]]:
    """Outcomes by opponent and judge, and who the judges are."""
    settings, context = work.settings, work.context
    mine = answers[settings.model]
    outcomes: dict[str, dict[str, list[float]]] = {name: {} for name in dict.fromkeys(settings.against)}
    judges: dict[str, str] = {}
    if settings.raters is not None:
        rubric = load_rubric(context.data["rubric"])
        raters = simulated_raters(settings.raters, rubric, work.seed)
        judges["rubric"] = f"{len(raters)} simulated raters by the rubric {rubric.name}"
        with context.working():
            for opponent, judged in outcomes.items():
                judged["rubric"] = rubric_outcomes(work.prompts, mine, answers[opponent], raters)
    if settings.reward is not None:
        judges["reward"] = f"reward model {context.inputs[settings.reward].ref()}"
        for opponent, judged in outcomes.items():
            scores = rewards[settings.model], rewards[opponent]
            judged["reward"] = score_outcomes(mine, answers[opponent], *scores)
    return outcomes, judges
