"""What policies are asked, and their answers: the same prompts and the same seeds for each of them."""

from collections.abc import Sequence
from pathlib import Path

from alignment.chat import render_prompt
from alignment.data.jsonl import read_records
from alignment.data.prompts import load_prompts, read_prompts
from alignment.data.split import part_of
from alignment.digests import content_id
from alignment.errors import StageError
from alignment.recipe.base import Part
from alignment.records import Artifact, Prompt, Response, Sampling
from alignment.rollouts.policy_pool import LoadedPolicy
from alignment.rollouts.seeds import response_seed
from alignment.stage import StageContext


def held_out_prompts(
    context: StageContext, *, source: str | None = None, limit: int | None = None, part: Part = "all"
) -> list[Prompt]:
    """The prompts to ask: of the stage that ``source`` names, else of data.held_out_prompts, else the held-out share of
    data.prompts.

    ``part`` and ``limit`` as in :func:`~alignment.data.split.part_of`. Raises StageError where none is left.
    """
    if source is not None:
        path = Path(context.inputs[source].path) / "prompts.jsonl"
        prompts = read_records(path, Prompt)
    elif "held_out_prompts" in context.data:
        path = context.data["held_out_prompts"]
        prompts = read_prompts(path)
    elif "prompts" in context.data:
        path = context.data["prompts"]
        _train, prompts = load_prompts(path, context.run.held_out)
    else:
        raise StageError(f"{context.name}: no prompts to ask; set data.prompts, or stages.{context.name}.prompts")
    chosen = part_of((prompt.id for prompt in prompts), part, limit)
    if not chosen:
        more = "" if "held_out_prompts" in context.data else ", or raise data.held_out"
        raise StageError(f"{path} has too few held-out prompts; add prompts{more}")
    return [prompt for prompt in prompts if prompt.id in chosen]


def training_prompts(context: StageContext, *, limit: int | None = None, part: Part = "all") -> list[Prompt]:
    """Prompts of data.prompts that stages may train on; ``part`` and ``limit`` as of held-out ones.

    Raises StageError where none is left.
    """
    prompts, _held_out = load_prompts(context.data["prompts"], context.run.held_out)
    chosen = part_of((prompt.id for prompt in prompts), part, limit)
    if not chosen:
        raise StageError(f"{context.data['prompts']} has too few prompts to train on; add prompts")
    return [prompt for prompt in prompts if prompt.id in chosen]


def draw(
    policy: LoadedPolicy,
    artifact: Artifact,
    prompts: Sequence[Prompt],
    *,
    sampling: Sampling,
    seed: int,
    first: int = 0,
    per_prompt: int = 1,
    batch_size: int = 64,
) -> list[list[Response]]:
    """``per_prompt`` responses to each prompt, the ``first``-th and those after it.

    A response's seed depends on the prompt and its place alone: every model draws with the same, which takes noise out
    of their comparison.
    """
    places = range(first, first + per_prompt)
    seeds = [response_seed(seed, prompt.id, place) for prompt in prompts for place in places]
    engine = policy.engine(batch_size)
    tokens = [render_prompt(policy.tokenizer, prompt.messages) for prompt in prompts]
    drawn = engine.generate(tokens, sampling=sampling, seeds=seeds, per_prompt=per_prompt)
    rows = iter(seeds)
    return [
        [
            Response(
                id=content_id(["answer", artifact.digest, prompt.id, own]),
                prompt_id=prompt.id,
                text=completion.text,
                model=str(artifact.ref()),
                sampling=sampling,
                seed=own,
                tokens=len(completion.tokens),
                finished=completion.finished,
            )
            for completion in group
            for own in [next(rows)]
        ]
        for prompt, group in zip(prompts, drawn, strict=True)
    ]
