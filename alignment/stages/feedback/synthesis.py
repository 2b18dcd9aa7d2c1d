"""The stage ``synthesis``: prompts → responses of several models under several principles, repeats left out.

What a judge rates is to differ in more than the dice: models and system messages make good and bad answers to one
prompt (Cui et al. 2023). Everything that is left out stands in a table of the report.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from alignment.chat import render_prompt
from alignment.data.jsonl import read_records, write_records
from alignment.data.prompts import load_prompts, read_prompts
from alignment.data.repetition import Repeat, contaminated, near_duplicates
from alignment.data.split import limited
from alignment.digests import content_id
from alignment.durable_files import write_text
from alignment.errors import StageError
from alignment.judges.answer_cache import Answers
from alignment.judges.openai_endpoint import EndpointAsker
from alignment.judges.prompts import JudgePrompt
from alignment.judges.protocol import JudgeUsage, wait_for
from alignment.models.load import load_policy
from alignment.preferences.ai_feedback_report import Check, SynthesisFigures
from alignment.recipe.base import BASE
from alignment.recipe.judges import Endpoint
from alignment.recipe.stages.feedback.ai_feedback import SynthesisStage
from alignment.records import Message, Prompt, Record, Response
from alignment.rollouts.factory import build_engine
from alignment.rollouts.seeds import response_seed
from alignment.stage import Progress, StageContext, StageResult

EXAMPLES = 3  # of each check, in the report


class Origin(Record):
    """Where a response came from; its record says the rest."""

    response_id: str
    model: str
    principle: str


@dataclass(frozen=True, slots=True)
class Asked:
    """One response that is wanted: of ``place`` among a prompt's, by a model (its place in the recipe), a principle."""

    prompt: Prompt
    place: int
    model: int
    principle: str


def run(settings: SynthesisStage, context: StageContext) -> StageResult:
    """Writes ``prompts.jsonl``, ``responses.jsonl``, ``origins.jsonl`` and ``synthesis.json``.

    Raises StageError where nothing is left to compare, or an endpoint cannot be asked.
    """
    seed = context.run.seed
    prompts, held_out = load_prompts(context.data["prompts"], context.run.held_out)
    if "held_out_prompts" in context.data:
        held_out += read_prompts(context.data["held_out_prompts"])
    prompts, checks = clean_prompts(settings, prompts, held_out, seed)
    wanted = plan(settings, limited(prompts, settings.limit), seed)
    names = [*settings.models, *(endpoint.model for endpoint in settings.endpoints)]
    tally, drawn, failed = JudgeUsage(), list[tuple[Asked, Response]](), 0
    for number, name in enumerate(names):
        mine = [asked for asked in wanted if asked.model == number]
        if not mine:  # of very few prompts, some models are asked none
            continue
        path = context.checkpoints / f"answers-{number:03d}.jsonl"
        if number >= len(settings.models):
            endpoint = settings.endpoints[number - len(settings.models)]
            with context.working():
                found, spent = _from_endpoint(settings, endpoint, mine, context)
            tally = _sum(tally, spent)
        elif path.exists():
            found = read_records(path, Response)
        else:
            with context.working():
                found = _from_model(settings, name, mine, context)
            write_records(path, found)
        by_id = {one.id: one for one in found}
        drawn += [(asked, by_id[key]) for asked in mine if (key := _id(asked, name, seed)) in by_id]
        failed += len(mine) - len(found)
        context.report(Progress(number + 1, len(names), {"responses": float(len(drawn))}, _tokens(drawn)))
    kept, more = clean_responses(settings, drawn, held_out, seed)
    figures = SynthesisFigures(
        checks=(*checks, *more), models=_counts(names[asked.model] for asked, _response in kept),
        principles=_counts(asked.principle for asked, _response in kept),
        empty=sum(not response.text.strip() for _asked, response in drawn), failed=failed, tally=tally.figures(),
    )  # fmt: skip
    return _publish(context, prompts, kept, names, figures, _tokens(drawn))


def clean_prompts(
    settings: SynthesisStage, prompts: Sequence[Prompt], held_out: Sequence[Prompt], seed: int
) -> tuple[list[Prompt], list[Check]]:
    """The prompts without what repeats a held-out one or each other, and both searches."""
    texts, away = [_text(prompt) for prompt in prompts], [_text(prompt) for prompt in held_out]
    dirty = contaminated(texts, away, n=settings.contamination_words)
    gone = {repeat.index for repeat in dirty}
    rest = [number for number in range(len(prompts)) if number not in gone]
    clean = [texts[number] for number in rest]
    doubles = near_duplicates(clean, settings.near_duplicate, seed=seed)
    twice = {repeat.index for repeat in doubles}
    n = settings.contamination_words
    checks = [
        _check(f"prompts with {n} words in a row, or all, of a held-out prompt", texts, away, dirty),
        _check("prompts that are near-duplicates of another", clean, clean, doubles),
    ]
    return [prompts[number] for place, number in enumerate(rest) if place not in twice], checks


def clean_responses(
    settings: SynthesisStage, drawn: Sequence[tuple[Asked, Response]], held_out: Sequence[Prompt], seed: int
) -> tuple[list[tuple[Asked, Response]], list[Check]]:
    """The responses that say something, that no other to their prompt says as well, and that quote no held-out prompt.

    They come in the order of their prompts, a prompt's together.
    """
    said = sorted(
        ((asked, one) for asked, one in drawn if one.text.strip()), key=lambda pair: (pair[0].prompt.id, pair[0].place)
    )
    texts, away = [one.text for _asked, one in said], [_text(prompt) for prompt in held_out]
    dirty = contaminated(texts, away, n=settings.contamination_words)
    gone = {repeat.index for repeat in dirty}
    groups: dict[str, list[int]] = {}
    for number, (asked, _one) in enumerate(said):
        if number not in gone:
            groups.setdefault(asked.prompt.id, []).append(number)
    doubles = [
        Repeat(group[repeat.index], group[repeat.of], repeat.share)
        for group in groups.values()
        for repeat in near_duplicates([texts[number] for number in group], settings.near_duplicate, seed=seed)
    ]
    gone |= {repeat.index for repeat in doubles}
    n = settings.contamination_words
    checks = [
        _check(f"responses with {n} words in a row, or all, of a held-out prompt", texts, away, dirty),
        _check("responses that are near-duplicates of another to their prompt", texts, texts, doubles,
               checked=sum(map(len, groups.values()))),
    ]  # fmt: skip
    return [pair for number, pair in enumerate(said) if number not in gone], checks


def plan(settings: SynthesisStage, prompts: Sequence[Prompt], seed: int) -> list[Asked]:
    """Who answers which prompt under which principle. A prompt meets each model, and each principle, once before twice.

    Which comes first follows from the seed and the prompt's id alone.
    """
    models = range(len(settings.models) + len(settings.endpoints))
    wanted = []
    for prompt in prompts:
        order = sorted(models, key=lambda model: content_id(["model", seed, prompt.id, model]))
        said = sorted(settings.principles, key=lambda name: content_id(["principle", seed, prompt.id, name]))
        for place in range(settings.per_prompt):
            # A full round of models moves the principles on by one, so that a pair of both comes back late.
            turn = place + place // len(order) * (len(order) % len(said) == 0)
            wanted.append(Asked(prompt, place, order[place % len(order)], said[turn % len(said)]))
    return wanted


def _from_model(settings: SynthesisStage, name: str, wanted: Sequence[Asked], context: StageContext) -> list[Response]:
    artifact, seed = context.inputs[name], context.run.seed
    model, tokenizer = load_policy(artifact, context.inputs[BASE], context.run)
    engine = build_engine(context, model, tokenizer, batch_size=settings.batch_size, artifact=artifact)
    drawn = engine.generate(
        [render_prompt(tokenizer, _messages(settings, asked)) for asked in wanted],
        sampling=settings.sampling,
        seeds=[response_seed(seed, asked.prompt.id, asked.place) for asked in wanted],
    )
    return [
        Response(
            id=_id(asked, name, seed), prompt_id=asked.prompt.id, text=one.text, model=str(artifact.ref()),
            sampling=settings.sampling, seed=response_seed(seed, asked.prompt.id, asked.place), tokens=len(one.tokens),
            finished=one.finished,
        )
        for asked, (one,) in zip(wanted, drawn, strict=True)
    ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Wording:
    max_tokens: int
    temperature: float


def _from_endpoint(
    settings: SynthesisStage, endpoint: Endpoint, wanted: Sequence[Asked], context: StageContext
) -> tuple[list[Response], JudgeUsage]:
    """What an endpoint answered; questions that got no answer are left out. Its answers are kept by their content."""
    wording = _Wording(settings.sampling.max_new_tokens, settings.sampling.temperature)
    asker = EndpointAsker(wording, endpoint, Answers(context.kept or context.checkpoints / "answers"))
    replies = wait_for(asker.ask([JudgePrompt(tuple(_messages(settings, asked))) for asked in wanted]))
    seed = context.run.seed
    return [
        Response(
            id=_id(asked, endpoint.model, seed), prompt_id=asked.prompt.id, text=reply.text, model=endpoint.model,
            sampling=settings.sampling, seed=response_seed(seed, asked.prompt.id, asked.place),
            tokens=reply.tokens, finished=reply.finished,
        )
        for asked, reply in zip(wanted, replies, strict=True)
        if reply.text is not None
    ], asker.tally  # fmt: skip


def _messages(settings: SynthesisStage, asked: Asked) -> list[Message]:
    """The prompt under its principle; a system message that the prompt has already comes after it, in the same one."""
    first, *rest = asked.prompt.messages
    principle = settings.principles[asked.principle]
    if first.role == "system":
        return [Message(role="system", content=f"{principle}\n\n{first.content}"), *rest]
    return [Message(role="system", content=principle), first, *rest]


def _publish(
    context: StageContext,
    prompts: Sequence[Prompt],
    kept: Sequence[tuple[Asked, Response]],
    names: Sequence[str],
    figures: SynthesisFigures,
    tokens: int,
) -> StageResult:
    answered = Counter(response.prompt_id for _asked, response in kept)
    if max(answered.values(), default=0) < 2:
        left_out = ", ".join(f"{check.left_out} {check.what}" for check in figures.checks)
        raise StageError(
            f"no prompt has two different responses to compare ({left_out}, {figures.empty} empty, {figures.failed} "
            "without an answer); sample at a higher temperature, name more models, or raise near_duplicate"
        )
    responses = [response for _asked, response in kept]
    origins = [Origin(response_id=one.id, model=names[asked.model], principle=asked.principle) for asked, one in kept]
    write_records(context.output / "prompts.jsonl", [prompt for prompt in prompts if prompt.id in answered])
    write_records(context.output / "responses.jsonl", responses)
    write_records(context.output / "origins.jsonl", origins)
    write_text(context.output / "synthesis.json", figures.model_dump_json(indent=1) + "\n")
    metrics = {
        "prompts": float(len(answered)),
        "responses": float(len(responses)),
        "contaminated_prompts": float(figures.checks[0].left_out),
        "near_duplicate_prompts": float(figures.checks[1].left_out),
        "contaminated_responses": float(figures.checks[2].left_out),
        "near_duplicate_responses": float(figures.checks[3].left_out),
        "empty": float(figures.empty),
        "failed": float(figures.failed),
        "cost": figures.tally["money"],
    }
    return StageResult("responses", metrics, tokens_sampled=tokens)


def _check(
    what: str, texts: Sequence[str], others: Sequence[str], found: Sequence[Repeat], checked: int | None = None
) -> Check:
    examples = tuple((texts[one.index], one.what or others[one.of]) for one in found[:EXAMPLES])
    return Check(what=what, checked=len(texts) if checked is None else checked, left_out=len(found), examples=examples)


def _id(asked: Asked, name: str, seed: int) -> str:
    return content_id(["synthesis", seed, asked.prompt.id, asked.place, name, asked.principle])


def _text(prompt: Prompt) -> str:
    """What a prompt asks: its last message."""
    return prompt.messages[-1].content


def _tokens(drawn: Sequence[tuple[Asked, Response]]) -> int:
    return sum(response.tokens for _asked, response in drawn)


def _counts(names: Any) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))


def _sum(one: JudgeUsage, other: JudgeUsage) -> JudgeUsage:
    return JudgeUsage(**{name: value + getattr(other, name) for name, value in one.figures().items()})
