"""Sampling responses: K to every training prompt, block by block, so that a run that was stopped goes on.

Every response carries its sampling settings and its own seed; with the policy's version that is what it takes to draw
it again.
"""

import hashlib
from collections.abc import Sequence

from alignment.chat import render_prompt
from alignment.data.jsonl import read_records, write_records
from alignment.data.prompts import load_prompts
from alignment.models.loading import load_policy
from alignment.recipe import BASE, SampleStage
from alignment.records import Prompt, Response
from alignment.rollouts.best_of import Score, best_of, reward_model_score
from alignment.rollouts.build import build_engine
from alignment.rollouts.engine import Engine
from alignment.stage import Progress, StageContext, StageResult


def run(settings: SampleStage, context: StageContext) -> StageResult:
    """Writes ``prompts.jsonl`` and ``responses.jsonl`` (in the prompts' order, a prompt's responses together)."""
    artifact, base = context.inputs[settings.model], context.inputs[BASE]
    prompts, _held_out = load_prompts(context.data["prompts"], context.recipe.data.held_out)
    prompts = prompts[: settings.limit]
    model, tokenizer = load_policy(artifact, base, context.recipe)
    engine = build_engine(context, model, tokenizer, batch_size=settings.batch_size, artifact=artifact)
    score = None
    if settings.reward is not None:
        score = reward_model_score(context, settings.reward, settings.model, tokenizer)
    tokens = {prompt.id: render_prompt(tokenizer, prompt.messages) for prompt in prompts}

    drawn: dict[str, list[Response]] = {}
    done = 0
    for number, block in enumerate(_blocks(prompts, tokens, settings)):
        path = context.checkpoints / f"block-{number:05d}.jsonl"
        if path.exists():
            responses = read_records(path, Response)
        else:
            with context.working():
                responses = _draw(engine, block, tokens, settings, str(artifact.ref()), context.recipe.seed, score)
            write_records(path, responses)
        for response in responses:
            drawn.setdefault(response.prompt_id, []).append(response)
        done += sum(response.tokens for response in responses)
        context.report(Progress(len(drawn), len(prompts), {}, done))

    responses = [response for prompt in prompts for response in drawn[prompt.id]]
    write_records(context.output / "prompts.jsonl", prompts)
    write_records(context.output / "responses.jsonl", responses)
    metrics = {
        "prompts": float(len(prompts)),
        "responses": float(len(responses)),
        "mean_tokens": done / len(responses),
        "finished": sum(response.finished for response in responses) / len(responses),
    }
    return StageResult("responses", metrics, tokens_sampled=done)


def response_seed(seed: int, prompt_id: str, index: int) -> int:
    """A response's own seed: it depends on nothing but the recipe's seed, the prompt and its place among the K."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{prompt_id}/{index}".encode()).digest()[:4], "big")


def _blocks(prompts: Sequence[Prompt], tokens: dict[str, list[int]], settings: SampleStage) -> list[list[Prompt]]:
    """Prompts of like length together, as many as fill one batch."""
    size = max(1, settings.batch_size // (settings.per_prompt * settings.best_of))
    ordered = sorted(prompts, key=lambda prompt: (len(tokens[prompt.id]), prompt.id))
    return [ordered[begin : begin + size] for begin in range(0, len(ordered), size)]


def _draw(
    engine: Engine,
    block: list[Prompt],
    tokens: dict[str, list[int]],
    settings: SampleStage,
    model: str,
    seed: int,
    score: Score | None,
) -> list[Response]:
    count = settings.per_prompt
    seeds = [response_seed(seed, prompt.id, index) for prompt in block for index in range(count)]
    asked, sampling = [tokens[prompt.id] for prompt in block], settings.sampling
    if score is None:
        completions = engine.generate(asked, per_prompt=count, sampling=sampling, seeds=seeds)
    else:
        completions = best_of(engine, asked, candidates=settings.best_of, score=score, sampling=sampling, seeds=seeds,
                              per_prompt=count)  # fmt: skip
    return [
        Response(
            id=hashlib.sha256(f"{model}/{prompt.id}/{seeds[row * count + index]}".encode()).hexdigest()[:16],
            prompt_id=prompt.id,
            text=completion.text,
            model=model,
            sampling=settings.sampling,
            seed=seeds[row * count + index],
            tokens=len(completion.tokens),
            finished=completion.finished,
        )
        for row, (prompt, group) in enumerate(zip(block, completions, strict=True))
        for index, completion in enumerate(group)
    ]
