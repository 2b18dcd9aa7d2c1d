"""The stage ``overoptimisation``: how far each policy can follow the proxy before what is really wanted falls.

It writes ``overoptimisation.json``: every policy's way, point by point, and its shape, as
:mod:`alignment.evaluation.reward_kl_curve` defines them. What was measured of a snapshot is kept as a checkpoint.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import Field

from alignment.chat import render_prompt
from alignment.digests import content_id
from alignment.durable_files import file_digest, write_text
from alignment.evaluation.bootstrap import mean
from alignment.evaluation.reward_kl_curve import Point, Shape, best_of_kl, best_of_mean, powers_of_two, shape
from alignment.metrics.kl import batched_kls
from alignment.preferences.rubric import load_rubric
from alignment.preferences.simulated_raters import SimulatedRater, simulated_raters
from alignment.recipe.base import BASE
from alignment.recipe.stages.experiments.overoptimisation import OveroptimisationStage
from alignment.records import Artifact, Comparison, Prompt, Record, Response, Sampling
from alignment.rollouts.best_of_n import AnswerScore, reward_model_score
from alignment.rollouts.held_out import held_out_prompts
from alignment.rollouts.policy_pool import PolicyPool
from alignment.rollouts.seeds import response_seed
from alignment.stage import Progress, StageContext, StageResult
from alignment.training.snapshots import snapshots_of

BEST_OF = "best_of_n"


class Overoptimisation(Record):
    """All of it. ``proxy_unit`` and ``true_unit`` are the standard deviations that rewards are measured in."""

    start: str
    prompts: int
    judge: str
    proxy_unit: float
    true_unit: float
    ways: dict[str, tuple[Point, ...]] = Field(min_length=1)
    shapes: dict[str, Shape]


class SnapshotScores(Record):
    """A model's answers: for each prompt, each answer's proxy and true reward, and the mean KL of its answers."""

    proxy: tuple[tuple[float, ...], ...]
    true: tuple[tuple[float, ...], ...]
    kl: tuple[float, ...]
    tokens: int


@dataclass(slots=True)
class _Lab:
    """What every measurement needs."""

    settings: OveroptimisationStage
    context: StageContext
    prompts: list[Prompt]
    raters: Sequence[SimulatedRater]
    pool: PolicyPool
    total: int  # answers that are to be drawn
    proxy: AnswerScore | None = None  # loaded when it is first asked
    done: int = 0
    tokens: int = 0


def run(settings: OveroptimisationStage, context: StageContext) -> StageResult:
    """Answers, scores and measures. Raises StageError where no held-out prompt is there to ask."""
    raters = simulated_raters(settings.raters, load_rubric(context.data["rubric"]), context.run.seed)
    prompts = held_out_prompts(context, limit=settings.limit, part=settings.part)
    moments = [
        (name, step, artifact) for name in settings.policies for step, artifact in _moments(context.inputs[name])
    ]
    total = len(prompts) * (settings.best_of + len(moments) * settings.per_prompt)
    lab = _Lab(settings, context, prompts, raters, PolicyPool(context.inputs[BASE], context.run), total)
    start = _measure(lab, context.inputs[settings.model], settings.best_of)
    ways: dict[str, list[tuple[int, SnapshotScores]]] = {name: [] for name in settings.policies}
    for name, step, artifact in moments:
        ways[name].append((step, _measure(lab, artifact, settings.per_prompt)))

    with context.working():
        found = _put_together(settings, context, prompts, raters, start, ways)
    write_text(context.output / "overoptimisation.json", found.model_dump_json(indent=1) + "\n")
    return StageResult("experiment", _metrics(found), tokens_sampled=lab.tokens)


def _moments(artifact: Artifact) -> Iterator[tuple[int, Artifact]]:
    """A policy's snapshots, and its end where that is none of them (its step is then one after the last)."""
    last, digests = 0, set()
    for step, snapshot in snapshots_of(artifact):
        yield step, snapshot
        last = step
        digests.add(_weights(snapshot))
    if _weights(artifact) not in digests:
        yield last + 1, artifact


def _weights(artifact: Artifact) -> tuple[bytes, ...]:
    """What tells two models' weights apart."""
    return tuple(file_digest(path).encode() for path in sorted(Path(artifact.path).glob("*.safetensors")))


def _measure(lab: _Lab, artifact: Artifact, per_prompt: int) -> SnapshotScores:
    """Draws a model's answers at temperature 1, and measures them; once, however often the stage is begun."""
    path = lab.context.checkpoints / f"{artifact.digest[:16]}-{per_prompt}.json"
    if path.exists():
        measured = SnapshotScores.model_validate_json(path.read_bytes())
    else:
        with lab.context.working():
            measured = _answers(lab, artifact, per_prompt)
        write_text(path, measured.model_dump_json())
    lab.done += per_prompt * len(lab.prompts)
    lab.tokens += measured.tokens
    lab.context.report(Progress(lab.done, lab.total, {}, lab.tokens))
    return measured


def _answers(lab: _Lab, artifact: Artifact, per_prompt: int) -> SnapshotScores:
    settings, run = lab.settings, lab.context.run
    start = lab.context.inputs[settings.model]
    policy = lab.pool.use(artifact)
    sampling = Sampling(temperature=1.0, max_new_tokens=settings.max_new_tokens)
    engine = policy.engine(settings.batch_size)
    asked = [render_prompt(policy.tokenizer, prompt.messages) for prompt in lab.prompts]
    seeds = [response_seed(run.seed, prompt.id, place) for prompt in lab.prompts for place in range(per_prompt)]

    def heard(done: int, _all: int) -> None:
        lab.context.report(Progress(lab.done + done, lab.total, {}, lab.tokens))

    drawn = engine.generate(asked, sampling=sampling, seeds=seeds, per_prompt=per_prompt, on_progress=heard)
    kl = [0.0] * len(drawn)
    if artifact.digest != start.digest:
        answers = [(ids, one.tokens) for ids, group in zip(asked, drawn, strict=True) for one in group]
        use_policy, use_start = lambda: lab.pool.use(artifact), lambda: lab.pool.use(start)
        values = batched_kls(use_policy, use_start, answers, batch_size=settings.batch_size)
        kl = [float(np.mean(row)) for row in _rows(values, per_prompt)]
    if lab.proxy is None:
        lab.proxy = reward_model_score(
            lab.context, settings.reward, settings.model, policy.tokenizer, batch_size=settings.batch_size
        )
    rows = [(prompt, one) for prompt, group in zip(lab.prompts, drawn, strict=True) for one in group]
    proxy = lab.proxy([prompt for prompt, _one in rows], [one for _prompt, one in rows])
    responses = [
        Response(
            id=content_id(["answer", artifact.digest, prompt.id, seed]), prompt_id=prompt.id, text=one.text,
            model=artifact.name, sampling=sampling, seed=seed, tokens=len(one.tokens), finished=one.finished,
        )
        for seed, (prompt, one) in zip(seeds, rows, strict=True)
    ]  # fmt: skip
    true = [true_reward(lab.raters, prompt, response) for (prompt, _one), response in zip(rows, responses, strict=True)]
    return SnapshotScores(proxy=_rows(proxy, per_prompt), true=_rows(true, per_prompt), kl=tuple(kl),
                    tokens=sum(response.tokens for response in responses))  # fmt: skip


def true_reward(raters: Sequence[SimulatedRater], prompt: Prompt, response: Response) -> float:
    """The raters' mean score of one answer, in the rubric's points."""
    twin = response.model_copy(update={"id": f"{response.id}~"})  # after it in any order: the noise is the response's
    asked = Comparison(id=response.id, prompt=prompt, responses=(response, twin))
    return float(np.mean([rater.scores(asked)[response.id] for rater in raters]))


def _rows(values: Sequence[float], size: int) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(values[begin : begin + size]) for begin in range(0, len(values), size))


def _put_together(
    settings: OveroptimisationStage,
    context: StageContext,
    prompts: Sequence[Prompt],
    raters: Sequence[SimulatedRater],
    start: SnapshotScores,
    ways: dict[str, list[tuple[int, SnapshotScores]]],
) -> Overoptimisation:
    units = {name: float(np.std(getattr(start, name))) or 1.0 for name in ("proxy", "true")}
    origin = {name: [float(np.mean(row)) for row in getattr(start, name)] for name in units}

    def moved(name: str, by_prompt: Sequence[float]) -> list[float]:
        return [(value - zero) / units[name] for value, zero in zip(by_prompt, origin[name], strict=True)]

    points: dict[str, tuple[Point, ...]] = {}
    shapes: dict[str, Shape] = {}

    def add(way: str, steps: list[int], kl: list[float], proxy: list[list[float]], true: list[list[float]]) -> None:
        points[way] = tuple(
            Point(step=steps[i], kl=kl[i], proxy=mean(proxy[i]), true=mean(true[i])) for i in range(len(steps))
        )
        shapes[way] = shape(steps, kl, true, proxy, trained=way != BEST_OF)

    numbers = powers_of_two(settings.best_of)
    best = {
        name: [
            moved(name, [best_of_mean(p, v, n) for p, v in zip(start.proxy, getattr(start, name), strict=True)])
            for n in numbers
        ]
        for name in units
    }
    add(BEST_OF, numbers, [best_of_kl(n) for n in numbers], best["proxy"], best["true"])
    for way, measured in ways.items():
        values = {
            name: [moved(name, [float(np.mean(row)) for row in getattr(one, name)]) for _step, one in measured]
            for name in units
        }
        kl = [float(np.mean(one.kl)) for _step, one in measured]
        add(way, [step for step, _one in measured], kl, values["proxy"], values["true"])
    return Overoptimisation(
        start=settings.model, prompts=len(prompts), judge=f"{len(raters)} simulated raters' scores by their rubric",
        proxy_unit=units["proxy"], true_unit=units["true"], ways=points, shapes=shapes,
    )  # fmt: skip


def _metrics(found: Overoptimisation) -> dict[str, float]:
    values = {"points": float(sum(map(len, found.ways.values())))}
    for way, one in found.shapes.items():
        for what in ("rise", "fall", "proxy_rise"):
            interval = getattr(one, what)
            values |= {f"{what}.{way}.{part}": getattr(interval, part) for part in ("value", "low", "high")}
        values[f"best_kl.{way}"] = one.best_kl
        values[f"kl.{way}"] = found.ways[way][-1].kl
    return values
