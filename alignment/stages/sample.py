"""Sampling responses: K to every training prompt, block by block, so that a run that was stopped goes on.

Every response carries its sampling settings and its own seed; with the policy's version that is what it takes to draw
it again.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from alignment.chat import render_prompt
from alignment.data.jsonl import read_records, write_records
from alignment.data.prompts import split_prompts
from alignment.data.split import limited
from alignment.errors import StageError
from alignment.models.load import load_policy, policy_tokenizer
from alignment.parallel_map import all_of
from alignment.prompting.server_answers import ServerSampler
from alignment.prompting.stage_prompts import PutPrompt, put_prompts, settled
from alignment.recipe.base import BASE
from alignment.recipe.judges import Endpoint
from alignment.recipe.stages.prompting import EXAMPLES
from alignment.recipe.stages.sample import SampleStage
from alignment.records import Prompt, Response, Sampling
from alignment.rollouts.best_of_n import AnswerScore, best_of, reward_model_score, score_of
from alignment.rollouts.engine import Engine, PromptIds
from alignment.rollouts.factory import build_engine
from alignment.rollouts.seeds import response_seed
from alignment.stage import Progress, StageContext, StageResult
from alignment.training.row_counts import log_counts, sift_prompts

Block: TypeAlias = list[PromptIds]


def run(settings: SampleStage, context: StageContext) -> StageResult:
    """Writes ``prompts.jsonl`` and ``responses.jsonl`` (in the prompts' order, a prompt's responses together); of
    prompts that are put in a form, ``asked.jsonl`` and ``written.jsonl`` too.

    Raises StageError where a server answers, and cannot be used or answers nothing.
    """
    split = split_prompts(context.data["prompts"], context.run.held_out)
    prompts, counts = split.train, {"duplicates": float(split.duplicates), "dropped": 0.0}
    tokenizer: Any = None
    if settings.endpoint is None:
        tokenizer = policy_tokenizer(context.inputs[settings.model], context.inputs[BASE], context.run)
        prompts, counts = sift_prompts(split.train, tokenizer, settings.longest_prompt(), split.duplicates)
    log_counts(context, counts)
    prompts = limited(prompts, settings.limit, settings.round)
    put = _put(settings, context, prompts, [*split.train, *split.held_out])
    asked = [(one, () if tokenizer is None else tuple(render_prompt(tokenizer, one.messages))) for one in put.values()]
    blocks = _blocks(asked, settings)
    drawn: dict[str, list[Response]] = {}

    def read(place: int) -> list[Response] | None:
        path = _checkpoint(context, place)
        return read_records(path, Response) if path.exists() and settings.endpoint is None else None

    def write(place: int, responses: list[Response]) -> None:
        write_records(_checkpoint(context, place), responses)

    def heard(responses: Sequence[Response]) -> None:
        for response in responses:
            drawn.setdefault(response.prompt_id, []).append(response)
        done = sum(response.tokens for kept in drawn.values() for response in kept)
        context.report(Progress(len(drawn), len(prompts), {}, done))

    all_of(blocks, sampler, settings, context, read=read, write=write, heard=heard)
    every = [response for prompt in prompts for response in drawn.get(prompt.id, ())]
    responses = _settled(settings, context, every, put)
    if not responses:
        raise StageError("the server answered none of the prompts; look at its log, and run again")
    write_records(context.output / "prompts.jsonl", [prompt for prompt in prompts if prompt.id in drawn])
    write_records(context.output / "responses.jsonl", responses)
    tokens = sum(response.tokens for response in every)
    metrics = {
        "prompts": float(len(drawn)),
        "responses": float(len(responses)),
        "mean_tokens": sum(response.tokens for response in responses) / len(responses),
        "finished": sum(response.finished for response in responses) / len(responses),
        "duplicates": counts["duplicates"],
    }
    if settings.endpoint is not None:
        metrics["failed"] = float(len(prompts) * _draws(settings) - len(every))
    if settings.prompting is not None and settings.prompting.keep == "answer":
        metrics["unread"] = sum(not response.text for response in responses) / len(responses)
    return StageResult("responses", metrics, tokens_sampled=tokens)


def _draws(settings: SampleStage) -> int:
    """Answers that are drawn to each prompt: for each response as many as vote."""
    return settings.per_prompt * (1 if settings.prompting is None else settings.prompting.votes)


def _put(
    settings: SampleStage, context: StageContext, prompts: Sequence[Prompt], away: Sequence[Prompt]
) -> dict[str, Prompt]:
    """Each prompt as it is put, by its id. Raises where an example of the form is one of them, or of ``away``."""
    if settings.prompting is not None:
        prompts = put_prompts(settings.prompting, prompts, context.data.get(EXAMPLES), context.run.seed, away)
    return {prompt.id: prompt for prompt in prompts}


def _settled(
    settings: SampleStage, context: StageContext, every: Sequence[Response], put: Mapping[str, Prompt]
) -> list[Response]:
    """The responses that come of all that was drawn; of a form, what was put and written is kept beside them."""
    if settings.prompting is None:
        return list(every)
    votes, seed = settings.prompting.votes, context.run.seed
    groups: dict[tuple[str, int], list[Response]] = {}
    for response in every:
        seeds = [response_seed(seed, response.prompt_id, place) for place in range(_draws(settings))]
        groups.setdefault((response.prompt_id, seeds.index(response.seed) // votes), []).append(response)
    responses, written = settled(settings.prompting, list(groups.values()))
    asked = dict.fromkeys(response.prompt_id for response in responses)
    write_records(
        context.output / "asked.jsonl", [PutPrompt(prompt_id=name, messages=put[name].messages) for name in asked]
    )
    write_records(context.output / "written.jsonl", written)
    return responses


def sampler(settings: SampleStage, context: StageContext) -> Callable[[Block], list[Response]]:
    """What draws the responses to a block of prompts, wherever it is called: they are the same."""
    if settings.endpoint is not None:
        return _server_sampler(settings, settings.endpoint, context)
    artifact, base = context.inputs[settings.model], context.inputs[BASE]
    model, tokenizer = load_policy(artifact, base, context.run)
    engine = build_engine(context, model, tokenizer, batch_size=settings.batch_size, artifact=artifact)
    score = None
    if settings.reward is not None:
        score = reward_model_score(context, settings.reward, settings.model, tokenizer)

    def draw(block: Block) -> list[Response]:
        return _draw(engine, block, settings, str(artifact.ref()), context.run.seed, score)

    return draw


def _server_sampler(
    settings: SampleStage, endpoint: Endpoint, context: StageContext
) -> Callable[[Block], list[Response]]:
    """The same where a server answers. Its answers are kept one by one, so that a budget counts each of them once."""
    server = ServerSampler(endpoint, _sampling(settings), context.kept or context.checkpoints / "answers")

    def draw(block: Block) -> list[Response]:
        return server.draw(
            [
                (prompt, prompt.messages, response_seed(context.run.seed, prompt.id, index))
                for prompt, _ids in block
                for index in range(_draws(settings))
            ]
        )

    return draw


def _sampling(settings: SampleStage) -> Sampling:
    return settings.sampling if settings.prompting is None else settings.prompting.drawn_by(settings.sampling)


def _checkpoint(context: StageContext, place: int) -> Path:
    return context.checkpoints / f"block-{place:05d}.jsonl"


def _blocks(prompts: Sequence[PromptIds], settings: SampleStage) -> list[Block]:
    """Prompts of like length together, as many as fill one batch."""
    size = max(1, settings.batch_size // (_draws(settings) * settings.best_of))
    ordered = sorted(prompts, key=lambda item: (len(item[1]), item[0].id))
    return [ordered[begin : begin + size] for begin in range(0, len(ordered), size)]


def _draw(
    engine: Engine,
    block: Block,
    settings: SampleStage,
    model: str,
    seed: int,
    score: AnswerScore | None,
) -> list[Response]:
    count = _draws(settings)
    seeds = [response_seed(seed, prompt.id, index) for prompt, _ids in block for index in range(count)]
    asked, sampling = [ids for _prompt, ids in block], _sampling(settings)
    if score is None:
        completions = engine.generate(asked, per_prompt=count, sampling=sampling, seeds=seeds)
    else:
        told = score_of(score, [prompt for prompt, _ids in block], asked)
        completions = best_of(engine, asked, candidates=settings.best_of, score=told, sampling=sampling, seeds=seeds,
                              per_prompt=count)  # fmt: skip
    return [
        Response(
            id=hashlib.sha256(f"{model}/{prompt.id}/{seeds[row * count + index]}".encode()).hexdigest()[:16],
            prompt_id=prompt.id,
            text=completion.text,
            model=model,
            sampling=sampling,
            seed=seeds[row * count + index],
            tokens=len(completion.tokens),
            finished=completion.finished,
        )
        for row, ((prompt, _ids), group) in enumerate(zip(block, completions, strict=True))
        for index, completion in enumerate(group)
    ]
