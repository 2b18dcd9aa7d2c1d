"""The stage ``tournament``: policies answer the same held-out prompts, raters compare them all, the best one goes on.

Its output is the best policy's files and ``tournament.json``, the ranking. What plays: the policies, the model they all
started from, and best-of-n from it. Ranks are by win rate against that start; ratings (Bradley–Terry) are over all
games, and say who beats whom among those that the start cannot tell apart.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

from alignment.chat import render_prompt
from alignment.data.digests import content_id
from alignment.data.jsonl import read_records, write_records
from alignment.evaluation.ai_judge import judged_outcomes
from alignment.evaluation.answers import draw, held_out_prompts
from alignment.evaluation.frontier import best_of_kl
from alignment.evaluation.judging import rubric_outcomes
from alignment.evaluation.kl import sampled_kl
from alignment.evaluation.models import PolicyPool
from alignment.evaluation.ratings import bradley_terry
from alignment.evaluation.settings import TournamentStage
from alignment.evaluation.win_rate import Rate, win_rate
from alignment.preferences.raters import simulated_raters
from alignment.preferences.rubric import load_rubric
from alignment.recipe_base import BASE
from alignment.records import Artifact, Prompt, Record, Response
from alignment.rollouts.best_of import best_of, reward_model_score
from alignment.rollouts.stage import response_seed
from alignment.stage import Progress, StageContext, StageResult
from alignment.workspace import write_text

BEST_OF = "best_of_n"
LEFT_BEHIND = ("artifact.json", "curves.json", "alarms.json", "samples", "snapshots")
BOOTSTRAP = 1000


class Standing(Record):
    """One player. ``rate`` is against the start (None for the start itself); KL is from it, in nats an answer.

    ``kl_bound``: the KL is not measured but the bound that best-of-n has. ``rating`` is in Elo points, 1000 the mean.
    """

    player: str
    rate: Rate | None
    rating: float
    rating_low: float | None
    rating_high: float | None
    kl: float
    kl_low: float | None = None
    kl_high: float | None = None
    kl_bound: bool = False
    model: bool = True  # False: a way of sampling, which cannot be promoted
    length: float = 0.0  # mean tokens of its answers


class Tournament(Record):
    """The ranking, best first, and the games: for each pair of players, one outcome for each prompt."""

    start: str
    winner: str
    prompts: int
    judge: str
    standings: tuple[Standing, ...]
    games: dict[str, tuple[float, ...]]  # "left/right" → 1 / 0.5 / 0 for left


def run(settings: TournamentStage, context: StageContext) -> StageResult:
    """Plays the tournament, and copies the winner. Raises StageError where no held-out prompt is there to ask."""
    prompts = held_out_prompts(context, limit=settings.limit, part=settings.part)
    pool = PolicyPool(context.inputs[BASE], context.recipe)
    players = [settings.model, *settings.policies]
    total = len(players) + (settings.best_of > 1) + len(settings.policies)
    answers: dict[str, list[Response]] = {}
    done = tokens = 0

    def advance() -> None:
        nonlocal done
        done += 1
        context.report(Progress(done, total, {}, tokens))

    for name in players:
        answers[name] = _answers(settings, context, pool, context.inputs[name], prompts)
        tokens += sum(response.tokens for response in answers[name])
        advance()
    if settings.best_of > 1:
        answers[BEST_OF] = _best_of(settings, context, pool, prompts)
        tokens += settings.best_of * sum(response.tokens for response in answers[BEST_OF])
        advance()
    kl = {}
    for name in settings.policies:
        kl[name] = _kl(settings, context, pool, context.inputs[name], prompts)
        advance()

    del pool
    games, judge = _games(settings, context, prompts, answers)
    with context.working():
        standings = rank(settings.model, games, kl, answers, candidates=settings.best_of, seed=context.recipe.seed)
    winner = next(one.player for one in standings if one.player in settings.policies)
    found = Tournament(
        start=settings.model, winner=winner, prompts=len(prompts),
        judge=judge, standings=tuple(standings),
        games={f"{left}/{right}": tuple(game) for (left, right), game in games.items()},
    )  # fmt: skip
    shutil.copytree(
        context.inputs[winner].path, context.output, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*LEFT_BEHIND)
    )
    write_text(context.output / "tournament.json", found.model_dump_json(indent=1) + "\n")
    return StageResult("model", metrics(found), tokens_sampled=tokens)


def _games(
    settings: TournamentStage, context: StageContext, prompts: list[Prompt], answers: Mapping[str, Sequence[Response]]
) -> tuple[dict[tuple[str, str], list[float]], str]:
    """Outcomes of every player against every other, one for each prompt, and who judged, in words."""
    both = list(combinations(answers, 2))
    if settings.judge is not None:
        asked = {f"{left}/{right}": (answers[left], answers[right]) for left, right in both}
        judged = judged_outcomes(settings, context, prompts, asked)
        return {(left, right): judged.outcomes[f"{left}/{right}"] for left, right in both}, judged.words
    assert settings.raters is not None
    rubric = load_rubric(context.data["rubric"])
    raters = simulated_raters(settings.raters, rubric, context.recipe.seed)
    with context.working():
        games = {(left, right): rubric_outcomes(prompts, answers[left], answers[right], raters) for left, right in both}
    return games, f"{len(raters)} simulated raters by the rubric {rubric.name}"


def rank(
    start: str,
    games: Mapping[tuple[str, str], Sequence[float]],
    kl: Mapping[str, tuple[float, float | None, float | None]],
    answers: Mapping[str, Sequence[Response]],
    *,
    candidates: int,
    seed: int,
) -> list[Standing]:
    """The players, best first: by win rate against ``start``, then by rating. ``games`` name the start on the left."""
    rows = [(left, right, outcome) for (left, right), game in games.items() for outcome in game]
    ratings = bradley_terry(rows, bootstrap=BOOTSTRAP, seed=seed)
    standings = []
    for player, responses in answers.items():
        against = None if player == start else win_rate([1 - outcome for outcome in games[start, player]])
        rating = ratings[player]
        value, low, high = kl.get(player, (best_of_kl(candidates) if player == BEST_OF else 0.0, None, None))
        standings.append(
            Standing(
                player=player, rate=against, rating=rating.value, rating_low=rating.low, rating_high=rating.high,
                kl=value, kl_low=low, kl_high=high, kl_bound=player == BEST_OF, model=player != BEST_OF,
                length=sum(response.tokens for response in responses) / len(responses),
            )
        )  # fmt: skip
    return sorted(standings, key=lambda one: (-(one.rate.value if one.rate else 0.5), -one.rating, one.player))


def metrics(found: Tournament) -> dict[str, float]:
    """Each player's win rate against the start with its interval, its rating and its KL."""
    values = {"players": float(len(found.standings))}
    for one in found.standings:
        if one.rate is not None:
            values |= {f"win_rate.{one.player}.{part}": getattr(one.rate, part) for part in ("value", "low", "high")}
        values |= {f"rating.{one.player}": one.rating, f"kl.{one.player}": one.kl}
    return values


def read_tournament(folder: Path) -> Tournament:
    """What the stage wrote."""
    return Tournament.model_validate(json.loads((folder / "tournament.json").read_text("utf-8")))


def _answers(
    settings: TournamentStage, context: StageContext, pool: PolicyPool, artifact: Artifact, prompts: list[Prompt]
) -> list[Response]:
    path = context.checkpoints / f"answers-{artifact.digest[:16]}.jsonl"
    if path.exists():
        return read_records(path, Response)
    policy = pool.use(artifact)
    with context.working():
        drawn = draw(policy, artifact, prompts, sampling=settings.sampling, seed=context.recipe.seed,
                     batch_size=settings.batch_size)  # fmt: skip
    responses = [response for (response,) in drawn]
    write_records(path, responses)
    return responses


def _best_of(
    settings: TournamentStage, context: StageContext, pool: PolicyPool, prompts: list[Prompt]
) -> list[Response]:
    """The answer of ``model`` that the reward model likes best among ``best_of``, to every prompt.

    Raises StageError where the reward model was trained with another chat template.
    """
    path = context.checkpoints / "answers-best-of-n.jsonl"
    if path.exists():
        return read_records(path, Response)
    assert settings.reward is not None
    artifact = context.inputs[settings.model]
    policy = pool.use(artifact)
    score = reward_model_score(
        context, settings.reward, settings.model, policy.tokenizer, batch_size=settings.batch_size
    )
    sampling = settings.sampling.model_copy(update={"temperature": settings.best_of_temperature})
    seeds = [response_seed(context.recipe.seed, prompt.id, 0) for prompt in prompts]
    engine = policy.engine(settings.batch_size)
    asked = [render_prompt(policy.tokenizer, prompt.messages) for prompt in prompts]
    with context.working():
        drawn = best_of(engine, asked, candidates=settings.best_of, score=score, sampling=sampling, seeds=seeds)
    responses = [
        Response(id=content_id(["answer", BEST_OF, prompt.id, seed]), prompt_id=prompt.id, text=one.text, model=BEST_OF,
                 sampling=sampling, seed=seed, tokens=len(one.tokens), finished=one.finished)
        for prompt, seed, (one,) in zip(prompts, seeds, drawn, strict=True)
    ]  # fmt: skip
    write_records(path, responses)
    return responses


def _kl(
    settings: TournamentStage, context: StageContext, pool: PolicyPool, artifact: Artifact, prompts: list[Prompt]
) -> tuple[float, float | None, float | None]:
    """KL(policy‖start) with its interval, on answers that the policy draws at temperature 1; kept as a checkpoint."""
    path = context.checkpoints / f"kl-{artifact.digest[:16]}.json"
    if path.exists():
        value, low, high = json.loads(path.read_text("utf-8"))
        return value, low, high
    asked = sorted(prompts, key=lambda prompt: prompt.id)[: settings.kl_prompts]
    with context.working():
        found = sampled_kl(
            pool, artifact, context.inputs[settings.model], asked, max_new_tokens=settings.sampling.max_new_tokens,
            batch_size=settings.batch_size, seed=context.recipe.seed,
        )  # fmt: skip
    write_text(path, json.dumps([found.value, found.low, found.high]))
    return found.value, found.low, found.high
