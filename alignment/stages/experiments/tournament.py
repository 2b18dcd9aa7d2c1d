"""The stage ``tournament``: policies answer the same held-out prompts, raters compare them all, the best one goes on.

Its output is the best policy's files and ``tournament.json``, the ranking. What plays: the policies, the model they all
started from, and best-of-n from it. Ranks are by win rate against that start; ratings (Bradley–Terry) are over all
games, and say who beats whom among those that the start cannot tell apart.
"""

import shutil
from collections.abc import Mapping, Sequence
from itertools import combinations

from alignment.durable_files import write_text
from alignment.evaluation.bootstrap import Measure
from alignment.evaluation.ratings import bradley_terry
from alignment.evaluation.reward_kl_curve import best_of_kl
from alignment.evaluation.win_rate import Games, Rate, length_controlled_win_rates, win_rate
from alignment.judges.outcomes import judged_outcomes
from alignment.metrics.generate import (
    BEST_OF,
    Found,
    GenerationRequest,
    ask_all,
    divergences_of,
    questions,
    responses_of,
)
from alignment.metrics.kl import mean_kl
from alignment.preferences.outcomes import rubric_outcomes
from alignment.preferences.rubric import load_rubric
from alignment.preferences.simulated_raters import simulated_raters
from alignment.recipe.stages.experiments.tournament import TournamentStage
from alignment.records import Prompt, Record, Response
from alignment.rollouts.held_out import held_out_prompts
from alignment.stage import Progress, StageContext, StageResult

LEFT_BEHIND = ("artifact.json", "curves.json", "alarms.json", "samples", "snapshots")
BOOTSTRAP = 1000


class Standing(Record):
    """One player. ``rate`` is against the start (None for the start itself); KL is from it, in nats an answer.

    ``length_controlled`` is the rate if answers were equally long, all players' games sharing the prompts' difficulty.

    ``kl_bound``: the KL is not measured but the bound that best-of-n has. ``rating`` is in Elo points, 1000 the mean.
    """

    player: str
    rate: Rate | None
    length_controlled: Measure | None = None
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
    """The ranking, best first, and the games: for each pair of players, one outcome for each prompt, in the order of
    ``prompt_ids``."""

    start: str
    winner: str
    prompts: int
    judge: str
    standings: tuple[Standing, ...]
    games: dict[str, tuple[float, ...]]  # "left/right" → 1 / 0.5 / 0 for left
    prompt_ids: tuple[str, ...] = ()  # empty in tournaments of earlier releases


def run(settings: TournamentStage, context: StageContext) -> StageResult:
    """Plays the tournament, and copies the winner. Raises StageError where no held-out prompt is there to ask."""
    prompts = held_out_prompts(context, limit=settings.limit, part=settings.part)
    asked = _questions(settings, prompts)
    done = tokens = 0

    def heard(question: GenerationRequest, found: Found) -> None:
        nonlocal done, tokens
        done += 1
        tokens += found.tokens * {"answers": 1, "best-of-n": settings.best_of}.get(question.what, 0)
        context.report(Progress(done, len(asked), {}, tokens))

    found = ask_all(settings, context, asked, heard)
    answers = {name: responses_of(found, "answers", name, prompts) for name in (settings.model, *settings.policies)}
    if settings.best_of > 1:
        answers[BEST_OF] = responses_of(found, "best-of-n", settings.model, prompts)
    kl = {name: _kl(settings, divergences_of(found, name, _kl_prompts(settings, prompts)))
          for name in settings.policies}  # fmt: skip
    games, judge = _games(settings, context, prompts, answers)
    with context.working():
        standings = rank(settings.model, games, kl, answers, candidates=settings.best_of, seed=context.run.seed)
    winner = next(one.player for one in standings if one.player in settings.policies)
    played = Tournament(
        start=settings.model, winner=winner, prompts=len(prompts),
        judge=judge, standings=tuple(standings),
        games={f"{left}/{right}": tuple(game) for (left, right), game in games.items()},
        prompt_ids=tuple(prompt.id for prompt in prompts),
    )  # fmt: skip
    shutil.copytree(
        context.inputs[winner].path, context.output, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*LEFT_BEHIND)
    )
    write_text(context.output / "tournament.json", played.model_dump_json(indent=1) + "\n")
    return StageResult("model", metrics(played), tokens_sampled=tokens)


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
    raters = simulated_raters(settings.raters, rubric, context.run.seed)
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
    """The players, best first: by win rate against ``start``, then by rating. ``games`` name the start on the left.

    All games on one prompt are resampled as one: a prompt that suits a player does so in each of its games.
    """
    rows = [(left, right, outcome) for (left, right), game in games.items() for outcome in game]
    prompts = [place for game in games.values() for place in range(len(game))]
    ratings = bradley_terry(rows, bootstrap=BOOTSTRAP, seed=seed, clusters=prompts)
    equal = _at_equal_length(start, games, answers)
    standings = []
    for player, responses in answers.items():
        against = None if player == start else win_rate([1 - outcome for outcome in games[start, player]])
        rating = ratings[player]
        value, low, high = kl.get(player, (best_of_kl(candidates) if player == BEST_OF else 0.0, None, None))
        standings.append(
            Standing(
                player=player, rate=against, length_controlled=equal.get(player),
                rating=rating.value, rating_low=rating.low, rating_high=rating.high,
                kl=value, kl_low=low, kl_high=high, kl_bound=player == BEST_OF, model=player != BEST_OF,
                length=sum(response.tokens for response in responses) / len(responses),
            )
        )  # fmt: skip
    return sorted(standings, key=lambda one: (-(one.rate.value if one.rate else 0.5), -one.rating, one.player))


def _at_equal_length(
    start: str, games: Mapping[tuple[str, str], Sequence[float]], answers: Mapping[str, Sequence[Response]]
) -> dict[str, Measure]:
    """Each player's win rate against ``start`` if answers were equally long."""
    lengths = {player: [response.tokens for response in responses] for player, responses in answers.items()}
    found = length_controlled_win_rates({
        player: Games([1 - outcome for outcome in games[start, player]], own, lengths[start], range(len(own)))
        for player, own in lengths.items()
        if player != start
    })  # fmt: skip
    return {
        player: Measure(value=float(one), low=one.low or 0.0, high=one.high or 0.0, n=len(lengths[player]))
        for player, one in found.items()
    }


def metrics(found: Tournament) -> dict[str, float]:
    """Each player's win rate against the start with its interval, its rating and its KL."""
    values = {"players": float(len(found.standings))}
    for one in found.standings:
        if one.rate is not None:
            values |= {f"win_rate.{one.player}.{part}": getattr(one.rate, part) for part in ("value", "low", "high")}
        if (equal := one.length_controlled) is not None:
            stem = f"win_rate.{one.player}.length_controlled"
            values |= {stem: equal.value, f"{stem}.low": equal.low, f"{stem}.high": equal.high}
        values |= {f"rating.{one.player}": one.rating, f"kl.{one.player}": one.kl}
    return values


def _questions(settings: TournamentStage, prompts: list[Prompt]) -> list[GenerationRequest]:
    """All that the players are asked, one after the other."""
    size = settings.batch_size
    asked = questions("answers", settings.model, prompts, size=size)
    if settings.best_of > 1:
        asked += questions("best-of-n", settings.model, prompts, size=max(1, size // settings.best_of))
    for name in settings.policies:
        asked += questions("answers", name, prompts, size=size)
        asked += questions("kl", name, _kl_prompts(settings, prompts), size=size, reference=settings.model)
    return asked


def _kl_prompts(settings: TournamentStage, prompts: list[Prompt]) -> list[Prompt]:
    return sorted(prompts, key=lambda prompt: prompt.id)[: settings.kl_prompts]


def _kl(settings: TournamentStage, divergences: Sequence[float]) -> tuple[float, float | None, float | None]:
    """KL(policy‖start) with its interval, from one value for each prompt."""
    found = mean_kl(divergences, max_new_tokens=settings.sampling.max_new_tokens)
    return found.value, found.low, found.high
