"""The stage ``evaluate``: the candidate against its opponents, on held-out prompts or on those of the training split.

It writes ``evaluation.json`` and ``samples.jsonl`` (both as :mod:`alignment.metrics.results` says), and
``metrics.json`` with what a gate may ask for. Models are asked, answers scored and judged in pieces, side by side where
there are workers, and each is kept as a checkpoint: a run that was stopped does nothing of it again.
"""

import json
from collections.abc import Callable, Mapping, Sequence

from alignment.chat import render_response, template_digest
from alignment.data.jsonl import write_records
from alignment.digests import content_id
from alignment.durable_files import write_text
from alignment.evaluation.bootstrap import Sums
from alignment.evaluation.metric_names import evaluated_models
from alignment.judges.outcomes import judged_outcomes
from alignment.judges.prompts import shots_of
from alignment.metrics.generate import (
    Answered,
    Found,
    GenerationRequest,
    ask_all,
    divergences_of,
    questions,
    response_groups,
    responses_of,
)
from alignment.metrics.kl import mean_kl
from alignment.metrics.measure import measure, require_prompts
from alignment.metrics.model_metrics import probe
from alignment.metrics.results import evaluation, metrics, samples
from alignment.metrics.reward_metrics import score_answers
from alignment.models.reward_model import load_reward_model, score
from alignment.parallel_map import all_of
from alignment.preferences.outcomes import rubric_outcomes, score_outcomes
from alignment.preferences.rubric import load_rubric
from alignment.preferences.simulated_raters import simulated_raters
from alignment.prompting.stage_prompts import PutPrompt, WrittenAnswers, put_prompts, settled
from alignment.recipe.base import BASE
from alignment.recipe.metrics import PassAtK, Perplexity
from alignment.recipe.stages.evaluate import EvaluateStage
from alignment.recipe.stages.prompting import EXAMPLES
from alignment.records import Artifact, Prompt, Response
from alignment.reward.factory import build_rewards
from alignment.rollouts.held_out import held_out_prompts, training_prompts
from alignment.rollouts.policy_pool import PolicyPool
from alignment.stage import Progress, StageContext, StageResult

Batch = tuple[tuple[Prompt, str, bool], ...]  # prompts, answers to them, and whether these are finished


def run(settings: EvaluateStage, context: StageContext) -> StageResult:
    """Samples, judges and measures. Raises StageError where no prompt is there to ask, or none for a metric."""
    prompts = _prompts(settings, context)
    require_prompts(settings.metrics, prompts)
    work = _Work(settings, context, prompts)
    asked = ask_all(settings, context, work.questions(), work.heard)
    answers = _answers(work, asked)
    pool = PolicyPool(context.inputs[BASE], context.run)
    sums = {name: _probe(work, pool, context.inputs[name]) for name in answers}
    kl = mean_kl(
        divergences_of(asked, settings.model, work.kl_prompts),
        max_new_tokens=settings.sampling.max_new_tokens,
    )  # fmt: skip
    templates = {name: template_digest(pool.tokenizer(context.inputs[name])) for name in evaluated_models(settings)}
    del pool

    rewards = _rewards(work, answers)
    outcomes, judges = _judge(work, answers, rewards)
    measured: dict[str, float] = {}
    if settings.judge is not None:
        games = {name: (answers[settings.model], answers[name]) for name in outcomes}
        judged = judged_outcomes(settings, context, prompts, games)
        judges["judge"] = judged.words
        if shots := shots_of(settings.judge, prompts):
            write_records(context.output / "shots.jsonl", shots)
        measured = {"judge.calibrated": float(judged.calibrated), "judge.unread": float(judged.unread)}
        for opponent, own in judged.outcomes.items():
            outcomes[opponent]["judge"] = own
    ordered = {name: answers[name] for name in evaluated_models(settings)}
    with context.working():
        rewarded = bool(settings.reward_names())
        scores = score_answers(build_rewards(settings.rewards, context), prompts, ordered) if rewarded else None
        sums = {name: own | measure(settings.metrics, prompts, answers[name]) for name, own in sums.items()}
        found = evaluation(settings, prompts, answers, outcomes, kl=kl, judges=judges, scores=scores, sums=sums,
                           templates=templates)  # fmt: skip
    values = metrics(settings, found, measured)
    write_text(context.output / "evaluation.json", found.model_dump_json(indent=1) + "\n")
    write_text(context.output / "metrics.json", json.dumps(values, indent=1) + "\n")
    write_records(context.output / "samples.jsonl", samples(prompts, ordered, outcomes, rewards, scores))
    return StageResult("evaluation", values, tokens_sampled=work.tokens)


def _prompts(settings: EvaluateStage, context: StageContext) -> list[Prompt]:
    if settings.split == "train":
        return training_prompts(context, limit=settings.limit, part=settings.part)
    return held_out_prompts(context, source=settings.prompts, limit=settings.limit, part=settings.part)


def _answers(work: "_Work", asked: Sequence[Answered]) -> dict[str, list[Response]]:
    """Every model's responses, the candidate's last; of a form, what was put and written is kept beside them."""
    settings, prompts, output = work.settings, work.prompts, work.context.output
    models = list(reversed(evaluated_models(settings)))
    if settings.prompting is None:
        return {name: responses_of(asked, "answers", name, prompts) for name in models}
    answers: dict[str, list[Response]] = {}
    written: list[WrittenAnswers] = []
    for name in models:
        answers[name], own = settled(settings.prompting, response_groups(asked, "answers", name, prompts))
        written += own
    write_records(
        output / "asked.jsonl", [PutPrompt(prompt_id=one.id, messages=one.messages) for one in work.put.values()]
    )
    write_records(output / "written.jsonl", written)
    return answers


def _put(settings: EvaluateStage, context: StageContext, prompts: Sequence[Prompt]) -> dict[str, Prompt]:
    """The prompts as the form puts them, by their ids; empty where there is none."""
    if settings.prompting is None:
        return {}
    return {
        one.id: one for one in put_prompts(settings.prompting, prompts, context.data.get(EXAMPLES), context.run.seed)
    }


class _Work:
    """What the steps share: settings, prompts, and how far they are."""

    def __init__(self, settings: EvaluateStage, context: StageContext, prompts: Sequence[Prompt]) -> None:
        self.settings, self.context, self.prompts = settings, context, prompts
        self.seed = context.run.seed
        self.kl_prompts = sorted(prompts, key=lambda prompt: prompt.id)[: settings.kl_prompts]
        self.put = _put(settings, context, prompts)
        self.votes = 1 if settings.prompting is None else settings.prompting.votes
        self.total = len(evaluated_models(settings)) * len(prompts) + len(self.kl_prompts)
        self.done = 0
        self.tokens = 0

    def questions(self) -> list[GenerationRequest]:
        """All that the models are asked, the candidate last: the KL needs it next."""
        settings, size = self.settings, self.settings.batch_size
        asked: list[GenerationRequest] = []
        for name in reversed(evaluated_models(settings)):
            asked += questions("answers", name, self.prompts, size=size, put=self.put, per_prompt=self.votes)
            if any(isinstance(metric, Perplexity | PassAtK) for metric in settings.metrics):
                asked.append(GenerationRequest("probes", name, tuple(self.prompts)))
        return asked + questions("kl", settings.model, self.kl_prompts, size=size, reference=settings.reference)

    def heard(self, question: GenerationRequest, found: Found) -> None:
        self.advance(len(question.prompts) if question.what != "probes" else 0, found.tokens)

    def advance(self, steps: int, tokens: int = 0) -> None:
        self.done += steps
        self.tokens += tokens
        self.context.report(Progress(self.done, self.total, {}, self.tokens))


def _probe(work: _Work, pool: PolicyPool, artifact: Artifact) -> dict[str, Sums]:
    """The metrics that ask one model itself, from what they were told."""
    settings = work.settings
    if not any(isinstance(metric, Perplexity | PassAtK) for metric in settings.metrics):
        return {}
    found, tokens = probe(
        settings.metrics, work.context, lambda: pool.use(artifact), artifact, work.prompts, sampling=settings.sampling,
        batch_size=settings.batch_size,
    )  # fmt: skip
    work.advance(0, tokens)
    return found


def _rewards(work: _Work, answers: Mapping[str, Sequence[Response]]) -> dict[str, list[float]]:
    """The reward model's score of every answer, by model; equal answers to a prompt are scored once."""
    if work.settings.reward is None:
        return {}
    wanted = {
        (prompt.id, response.text, response.finished): prompt
        for responses in answers.values()
        for prompt, response in zip(work.prompts, responses, strict=True)
    }
    ordered = sorted(wanted, key=lambda one: (len(one[1]), one))
    size = work.settings.batch_size
    batches = [
        tuple((wanted[one], *one[1:]) for one in ordered[start : start + size])
        for start in range(0, len(ordered), size)
    ]
    paths = [work.context.checkpoints / f"scores-{_of(batch)}.json" for batch in batches]

    def read(place: int) -> list[float] | None:
        return json.loads(paths[place].read_text("utf-8")) if paths[place].exists() else None

    found = all_of(
        batches, scorer, work.settings, work.context, read=read, heard=lambda _scores: None,
        write=lambda place, scores: write_text(paths[place], json.dumps(scores)),
    )  # fmt: skip
    scores = dict(zip(ordered, (value for batch in found for value in batch), strict=True))
    return {name: [scores[r.prompt_id, r.text, r.finished] for r in responses] for name, responses in answers.items()}


def scorer(settings: EvaluateStage, context: StageContext) -> Callable[[Batch], list[float]]:
    """What scores a batch of answers with the stage's reward model, wherever it is called."""
    assert settings.reward is not None
    model, tokenizer = load_reward_model(context.inputs[settings.reward], context.run)

    def scored(batch: Batch) -> list[float]:
        sequences = [
            render_response(tokenizer, prompt.messages, text, finished=finished) for prompt, text, finished in batch
        ]
        return score(model, tokenizer, sequences, batch_size=settings.batch_size)

    return scored


def _of(batch: Batch) -> str:
    return content_id([[prompt.id, text, finished] for prompt, text, finished in batch])


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
