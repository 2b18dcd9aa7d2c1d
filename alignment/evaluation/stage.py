"""The stage ``evaluate``: the candidate against its opponents on held-out prompts.

It writes ``evaluation.json`` and ``samples.jsonl`` (both as :mod:`alignment.evaluation.results` says), and
``metrics.json`` with what a gate may ask for. A model's answers are kept as a checkpoint, so that a run that was
stopped does not sample them again.
"""

import json
from collections.abc import Mapping, Sequence

from alignment.chat import render_answer, render_prompt, template_digest
from alignment.data.jsonl import read_records, write_records
from alignment.evaluation.ai_judge import judged_outcomes
from alignment.evaluation.answers import draw, held_out_prompts
from alignment.evaluation.bootstrap import Sums
from alignment.evaluation.judging import rubric_outcomes, score_outcomes
from alignment.evaluation.kl import KlEstimate, sampled_kl
from alignment.evaluation.metric_names import evaluated_models
from alignment.evaluation.metric_settings import PassAtK, Perplexity
from alignment.evaluation.metrics import measure, require_prompts
from alignment.evaluation.models import PolicyPool
from alignment.evaluation.probes import probe
from alignment.evaluation.results import evaluation, metrics, samples
from alignment.evaluation.reward_metrics import score_answers
from alignment.models.loading import load_reward_model
from alignment.preferences.raters import simulated_raters
from alignment.preferences.rubric import load_rubric
from alignment.recipe import BASE, EvaluateStage
from alignment.records import Artifact, Prompt, Response, Sampling
from alignment.reward.build import build_rewards
from alignment.reward.model import score
from alignment.stage import Progress, StageContext, StageResult
from alignment.workspace import write_text

Answers = dict[str, list[Response]]


def run(settings: EvaluateStage, context: StageContext) -> StageResult:
    """Samples, judges and measures. Raises StageError where no prompt is there to ask, or none for a metric."""
    prompts = held_out_prompts(context, source=settings.prompts, limit=settings.limit, part=settings.part)
    require_prompts(settings.metrics, prompts)
    work = _Work(settings, context, prompts)
    pool = PolicyPool(context.inputs[BASE], context.recipe)
    answers: Answers = {}
    sums: dict[str, dict[str, Sums]] = {}
    for name in reversed(evaluated_models(settings)):  # the candidate last: the KL needs it next
        answers[name] = _answers(work, pool, context.inputs[name])
        sums[name] = _probe(work, pool, context.inputs[name])
        pool.keep_only(context.inputs[settings.model], context.inputs[settings.reference])
    kl = _kl(work, pool)
    templates = {name: template_digest(pool.tokenizer(context.inputs[name])) for name in evaluated_models(settings)}
    del pool

    rewards = _rewards(work, answers)
    outcomes, judges = _judge(work, answers, rewards)
    measured: dict[str, float] = {}
    if settings.judge is not None:
        games = {name: (answers[settings.model], answers[name]) for name in outcomes}
        judged = judged_outcomes(settings, context, prompts, games)
        judges["judge"] = judged.words
        measured = {"judge.calibrated": float(judged.calibrated), "judge.unread": float(judged.unread)}
        for opponent, own in judged.outcomes.items():
            outcomes[opponent]["judge"] = own
    ordered = {name: answers[name] for name in evaluated_models(settings)}
    with context.working():
        scores = score_answers(build_rewards(settings.rewards, context), prompts, ordered) if settings.rewards else None
        sums = {name: own | measure(settings.metrics, prompts, answers[name]) for name, own in sums.items()}
        found = evaluation(settings, prompts, answers, outcomes, kl=kl, judges=judges, scores=scores, sums=sums,
                           templates=templates)  # fmt: skip
    values = metrics(settings, found, measured)
    write_text(context.output / "evaluation.json", found.model_dump_json(indent=1) + "\n")
    write_text(context.output / "metrics.json", json.dumps(values, indent=1) + "\n")
    write_records(context.output / "samples.jsonl", samples(prompts, ordered, outcomes, rewards, scores))
    return StageResult("evaluation", values, tokens_sampled=work.tokens)


class _Work:
    """What the steps share: settings, prompts, and how far they are."""

    def __init__(self, settings: EvaluateStage, context: StageContext, prompts: Sequence[Prompt]) -> None:
        self.settings, self.context, self.prompts = settings, context, prompts
        self.seed = context.recipe.seed
        self.kl_prompts = sorted(prompts, key=lambda prompt: prompt.id)[: settings.kl_prompts]
        self.total = len(evaluated_models(settings)) * len(prompts) + len(self.kl_prompts)
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
    """One response to each prompt."""
    policy = pool.use(artifact)
    with work.context.working():
        drawn = draw(policy, artifact, prompts, sampling=sampling, seed=work.seed, first=index,
                     batch_size=work.settings.batch_size)  # fmt: skip
    return [response for (response,) in drawn]


def _probe(work: _Work, pool: PolicyPool, artifact: Artifact) -> dict[str, Sums]:
    """The metrics that ask one model itself."""
    settings = work.settings
    if not any(isinstance(metric, Perplexity | PassAtK) for metric in settings.metrics):
        return {}
    found, tokens = probe(
        settings.metrics, work.context, pool.use(artifact), artifact, work.prompts, sampling=settings.sampling,
        batch_size=settings.batch_size,
    )  # fmt: skip
    work.advance(0, tokens)
    return found


def _kl(work: _Work, pool: PolicyPool) -> KlEstimate:
    """KL(candidate‖reference) on responses that the candidate draws at temperature 1."""
    settings, inputs = work.settings, work.context.inputs
    with work.context.working():
        return sampled_kl(
            pool, inputs[settings.model], inputs[settings.reference], work.kl_prompts,
            max_new_tokens=settings.sampling.max_new_tokens, batch_size=settings.batch_size, seed=work.seed,
            on_response=lambda tokens: work.advance(1, tokens),
        )  # fmt: skip


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
