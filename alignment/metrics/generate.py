"""What an evaluation or a tournament asks policies, in pieces: of one policy, and of some of the prompts each.

The pieces may be done side by side (:mod:`alignment.parallel_map`); every one is kept as a checkpoint, so that a run
that was stopped asks nothing twice. Prompts of like length stand together, and a piece is one batch: what it brings
depends on nothing outside of it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from alignment.chat import render_prompt
from alignment.data.jsonl import read_records, write_records
from alignment.digests import content_id
from alignment.durable_files import write_text
from alignment.environments.episodes import EpisodePlayer
from alignment.environments.process import EnvironmentProcess, environment_process
from alignment.metrics.kl import response_kls
from alignment.metrics.model_metrics import probe
from alignment.parallel_map import all_of
from alignment.recipe.base import BASE
from alignment.records import Artifact, EpisodeResponse, Prompt, Response
from alignment.rollouts.best_of_n import AnswerScore, best_of, reward_model_score, score_of
from alignment.rollouts.held_out import draw
from alignment.rollouts.policy_pool import LoadedPolicy, PolicyPool
from alignment.rollouts.seeds import derived_seed, response_seed
from alignment.stage import StageContext

BEST_OF = "best_of_n"
What = Literal["answers", "best-of-n", "kl", "probes"]


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One piece. ``answers``: one to each prompt; ``best-of-n``: the best of ``settings.best_of`` to each; ``kl``: from
    ``reference``, on answers of their own; ``probes``: the metrics that ask the model itself, kept by themselves.

    ``put`` are the prompts as they are put to the model, in the order of ``prompts`` and under their ids; empty: as
    they are. ``per_prompt`` answers are drawn to each."""

    what: What
    model: str  # a stage's name
    prompts: tuple[Prompt, ...]
    reference: str = ""
    put: tuple[Prompt, ...] = ()
    per_prompt: int = 1


@dataclass(frozen=True, slots=True)
class Found:
    """What a piece brings: its responses, or (KL in nats, tokens) of each prompt; in the prompts' order."""

    responses: tuple[Response, ...] = ()
    divergences: tuple[tuple[float, int], ...] = ()

    @property
    def tokens(self) -> int:
        return sum(one.tokens for one in self.responses) + sum(tokens for _value, tokens in self.divergences)


Answered = tuple[GenerationRequest, Found]


def questions(
    what: What,
    model: str,
    prompts: Sequence[Prompt],
    *,
    size: int,
    reference: str = "",
    put: Mapping[str, Prompt] | None = None,
    per_prompt: int = 1,
) -> list[GenerationRequest]:
    """The pieces that ask ``model`` about all prompts, ``size`` at a time, each as ``put`` has it by its id."""
    ordered = sorted(prompts, key=lambda prompt: (sum(len(one.content) for one in prompt.messages), prompt.id))
    step = max(1, size // per_prompt)
    blocks = [tuple(ordered[start : start + step]) for start in range(0, len(ordered), step)]
    return [
        GenerationRequest(what, model, block, reference, tuple(put[one.id] for one in block) if put else (), per_prompt)
        for block in blocks
    ]


def ask_all(
    settings: Any,
    context: StageContext,
    asked: Sequence[GenerationRequest],
    heard: Callable[[GenerationRequest, Found], None],
) -> list[Answered]:
    """What all pieces bring, in their order; ``heard`` is told of each when it is there.

    ``settings`` are an evaluation's or a tournament's. Raises StageError where a policy cannot be asked.
    """
    paths = [context.checkpoints / _name(question, context) for question in asked]

    played = settings.environment_used() is not None

    def read(place: int) -> Answered | None:
        path = paths[place]
        if not path.exists():
            return None
        if path.suffix == ".jsonl":
            kind = EpisodeResponse if played and asked[place].what == "answers" else Response
            return asked[place], Found(responses=tuple(read_records(path, kind)))
        rows = json.loads(path.read_text("utf-8"))
        return asked[place], Found(divergences=tuple((float(value), int(tokens)) for value, tokens in rows))

    def write(place: int, result: Answered) -> None:
        if paths[place].suffix == ".jsonl":
            write_records(paths[place], result[1].responses)
        else:
            write_text(paths[place], json.dumps(result[1].divergences) + "\n")

    return all_of(asked, asker, settings, context, read=read, write=write, heard=lambda both: heard(*both))


def responses_of(asked: Sequence[Answered], what: What, model: str, prompts: Sequence[Prompt]) -> list[Response]:
    """A model's responses, one to each prompt, in the prompts' order."""
    return [group[-1] for group in response_groups(asked, what, model, prompts)]


def response_groups(
    asked: Sequence[Answered], what: What, model: str, prompts: Sequence[Prompt]
) -> list[list[Response]]:
    """A model's responses to each prompt, in the prompts' order."""
    every: dict[str, list[Response]] = {prompt.id: [] for prompt in prompts}
    for question, found in asked:
        if (question.what, question.model) == (what, model):
            for response in found.responses:
                every[response.prompt_id].append(response)
    return [every[prompt.id] for prompt in prompts]


def divergences_of(asked: Sequence[Answered], model: str, prompts: Sequence[Prompt]) -> list[float]:
    """A model's KL from its reference, of one response to each prompt, in the prompts' order."""
    every = {
        prompt.id: value
        for question, found in asked
        if (question.what, question.model) == ("kl", model)
        for prompt, (value, _tokens) in zip(question.prompts, found.divergences, strict=True)
    }
    return [every[prompt.id] for prompt in prompts]


def asker(settings: Any, context: StageContext) -> Callable[[GenerationRequest], Answered]:
    """What asks, wherever it is called."""
    scores: list[AnswerScore] = []  # the reward model that chooses, once it was needed
    pool = PolicyPool(context.inputs[BASE], context.run)
    roles = settings.inputs()
    often = [context.inputs[name] for role in ("model", "reference") for name in roles.get(role, ())]
    environment = settings.environment_used()
    process = None if environment is None else environment_process(environment, context)

    def ask(question: GenerationRequest) -> Answered:
        artifact = context.inputs[question.model]
        pool.keep_only(artifact, *often)
        if question.what == "answers":
            policy = pool.use(artifact)
            if process is not None:
                return question, Found(responses=_played(settings, context, policy, artifact, question, process))
            drawn = draw(policy, artifact, question.put or question.prompts, sampling=settings.sampling_used(),
                         seed=context.run.seed, per_prompt=question.per_prompt,
                         batch_size=settings.batch_size)  # fmt: skip
            return question, Found(responses=tuple(response for group in drawn for response in group))
        if question.what == "best-of-n":
            return question, Found(responses=_best_of(settings, context, pool, question, scores))
        if question.what == "probes":
            probe(settings.metrics, context, lambda: pool.use(artifact), artifact, question.prompts,
                  sampling=settings.sampling, batch_size=settings.batch_size)  # fmt: skip
            return question, Found()
        rows = response_kls(
            pool, artifact, context.inputs[question.reference], question.prompts, seed=context.run.seed,
            max_new_tokens=settings.sampling.max_new_tokens, batch_size=settings.batch_size,
        )  # fmt: skip
        return question, Found(divergences=tuple(rows))

    return ask


def _played(
    settings: Any,
    context: StageContext,
    policy: LoadedPolicy,
    artifact: Artifact,
    question: GenerationRequest,
    process: EnvironmentProcess,
) -> tuple[EpisodeResponse, ...]:
    """One episode with the environment for each prompt; every model has the same seeds."""
    seed, sampling = context.run.seed, settings.sampling
    seeds = [response_seed(seed, prompt.id, 0) for prompt in question.prompts]
    own = [derived_seed(seed, prompt.id, "environment") for prompt in question.prompts]
    asked = [(prompt, tuple(render_prompt(policy.tokenizer, prompt.messages))) for prompt in question.prompts]
    episodes = EpisodePlayer(process, policy.tokenizer).play(
        policy.engine(settings.batch_size), asked, sampling=sampling, seeds=seeds, environment_seeds=own
    )
    return tuple(
        EpisodeResponse(
            id=content_id(["episode", artifact.digest, prompt.id, one]), prompt_id=prompt.id,
            text=episode.completion.text, model=str(artifact.ref()), sampling=sampling, seed=one,
            tokens=sum(episode.drawn_mask), finished=episode.completion.finished, turns=episode.turns,
            reward=episode.reward,
        )
        for prompt, one, episode in zip(question.prompts, seeds, episodes, strict=True)
    )  # fmt: skip


def _best_of(
    settings: Any, context: StageContext, pool: PolicyPool, question: GenerationRequest, scores: list[AnswerScore]
) -> tuple[Response, ...]:
    """The answers that the reward model likes best among ``settings.best_of`` to each prompt.

    Raises StageError where the reward model was trained with another chat template.
    """
    policy = pool.use(context.inputs[question.model])
    if not scores:
        scores.append(reward_model_score(context, settings.reward, settings.model, policy.tokenizer,
                                         batch_size=settings.batch_size))  # fmt: skip
    sampling = settings.sampling.model_copy(update={"temperature": settings.best_of_temperature})
    seeds = [response_seed(context.run.seed, prompt.id, 0) for prompt in question.prompts]
    engine = policy.engine(settings.batch_size)
    asked = [render_prompt(policy.tokenizer, prompt.messages) for prompt in question.prompts]
    drawn = best_of(engine, asked, candidates=settings.best_of, score=score_of(scores[0], question.prompts, asked),
                    sampling=sampling, seeds=seeds)  # fmt: skip
    return tuple(
        Response(id=content_id(["answer", BEST_OF, prompt.id, seed]), prompt_id=prompt.id, text=one.text, model=BEST_OF,
                 sampling=sampling, seed=seed, tokens=len(one.tokens), finished=one.finished)
        for prompt, seed, (one,) in zip(question.prompts, seeds, drawn, strict=True)
    )  # fmt: skip


def _name(question: GenerationRequest, context: StageContext) -> str:
    """The checkpoint's name: whom it asks what."""
    named: list[Artifact] = [context.inputs[name] for name in (question.model, question.reference) if name]
    who = [[str(one.ref()), one.digest] for one in named]
    identity = content_id([who, [prompt.id for prompt in question.prompts]])
    return f"{question.what}-{identity}.{'jsonl' if question.what in ('answers', 'best-of-n') else 'json'}"
