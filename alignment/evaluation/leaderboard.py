"""Every version that ever played in a workspace: who beat whom, and how strong that makes each of them.

A game is one prompt and one judge's (or rater's) verdict on two versions' answers to it. Games come from evaluations,
from tournaments, and from votes on answers of different versions, people's votes and the arena's among them. What
people said and what programs said (simulated raters, reward models, judges) is rated apart, and together.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from alignment.data.jsonl import read_records
from alignment.records import Artifact, Comparison, Record, Vote
from alignment.workspace import Workspace

Who = Literal["people", "programs"]
WHO: tuple[Who, ...] = ("people", "programs")
VIEWS = ("all", *WHO)
BOOTSTRAP = 500


class Game(Record):
    """``left`` against ``right``, artifacts by reference; ``outcome`` 1, 0.5 or 0 for left. ``id`` says which game.

    ``prompt`` says what it hangs on: all verdicts on answers to one prompt are resampled as one, whoever gave them.
    The same game found twice, an evaluation that was made again with one setting changed, counts once.
    """

    id: str
    left: str
    right: str
    outcome: float
    who: Who
    prompt: str = ""  # none: it hangs on nothing else, as a talk in the arena


class PlayerRating(Record):
    """A rating in Elo points around 1000, with its 95 % interval; players of different ``group`` never met.

    ``smoothed``: someone in the group beat nobody or lost to nobody, so the figure is an order of magnitude.
    """

    value: float
    low: float | None
    high: float | None
    games: int
    group: int
    smoothed: bool


class Player(Record):
    """A version by its artifact's reference, and by its names in the registry; its ratings by view."""

    ref: str
    names: tuple[str, ...]
    ratings: dict[str, PlayerRating]


class Meeting(Record):
    """All games of two players, as the first of them had them."""

    first: str
    second: str
    who: Who
    wins: int
    ties: int
    losses: int


class Leaderboard(Record):
    """Players best first, and the meetings of each two of them; ``games`` counts them by who judged."""

    players: tuple[Player, ...]
    meetings: tuple[Meeting, ...]
    games: dict[Who, int]


def leaderboard(
    workspace: Workspace, extra: Iterable[Game] = (), names: Mapping[str, Sequence[str]] | None = None
) -> Leaderboard | None:
    """The leaderboard of a workspace; None where nobody ever played.

    ``extra`` are games that are kept elsewhere, ``names`` the registered versions by their candidate's reference.
    """
    from alignment.evaluation.ratings import bradley_terry  # what the report reads of this file needs no solver

    games = list({game.id: game for game in [*workspace_games(workspace), *extra]}.values())
    if not games:
        return None
    rated: dict[str, dict[str, PlayerRating]] = {}
    for view in VIEWS:
        seen = [game for game in games if view in ("all", game.who)]
        if not seen:
            continue
        rows = [(game.left, game.right, game.outcome) for game in seen]
        ratings = bradley_terry(rows, bootstrap=BOOTSTRAP, clusters=[game.prompt or game.id for game in seen])
        for ref, one in ratings.items():
            rated.setdefault(ref, {})[view] = PlayerRating(
                value=one.value, low=one.low, high=one.high, games=one.games, group=one.group, smoothed=one.smoothed
            )
    order = sorted(rated, key=lambda ref: (rated[ref]["all"].group, -rated[ref]["all"].value, ref))
    return Leaderboard(
        players=tuple(Player(ref=ref, names=tuple((names or {}).get(ref, ())), ratings=rated[ref]) for ref in order),
        meetings=_meetings(games, order),
        games={who: sum(game.who == who for game in games) for who in WHO},
    )


def workspace_games(workspace: Workspace) -> Iterator[Game]:
    """The games in a workspace's artifacts, oldest first."""
    for artifact in workspace.artifacts():
        folder = Path(artifact.path)
        if (folder / "evaluation.json").exists() and (folder / "samples.jsonl").exists():
            yield from _evaluation_games(folder)
        elif (folder / "tournament.json").exists():
            yield from _tournament_games(artifact, folder)
        elif (folder / "comparisons.jsonl").exists() and (folder / "votes.jsonl").exists():
            comparisons = read_records(folder / "comparisons.jsonl", Comparison)
            yield from vote_games(comparisons, read_records(folder / "votes.jsonl", Vote))


def vote_games(comparisons: Iterable[Comparison], votes: Iterable[Vote]) -> Iterator[Game]:
    """One game for each vote and two answers that it ranks, where they are of different models."""
    by_id = {comparison.id: comparison for comparison in comparisons}
    cast = list(votes)
    superseded = {vote.supersedes for vote in cast}
    for vote in cast:
        comparison = by_id.get(vote.comparison_id)
        if comparison is None or vote.outcome != "ranked" or vote.id in superseded:
            continue
        models = {response.id: response.model for response in comparison.responses}
        place = {response: rank for rank, group in enumerate(vote.ranking) for response in group}
        for one, other in combinations(sorted(place), 2):
            if models[one] != models[other]:
                outcome = 0.5 if place[one] == place[other] else float(place[one] < place[other])
                who: Who = "people" if vote.rater_kind == "human" else "programs"
                yield _game(f"{vote.id}/{one}/{other}", models[one], models[other], outcome, who,
                            comparison.prompt.id)  # fmt: skip


def _evaluation_games(folder: Path) -> Iterator[Game]:
    found = json.loads((folder / "evaluation.json").read_text("utf-8"))
    refs = {name: figures["artifact"] for name, figures in found["models"].items()}
    mine = refs[found["candidate"]]
    for line in (folder / "samples.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        for opponent, judged in row["outcomes"].items():
            if refs[opponent] == mine:
                continue
            for judge, outcome in judged.items():
                left, right = sorted((mine, refs[opponent]))
                told = f"{row['prompt_id']}/{left}/{right}/{found['judges'][judge]}"
                yield _game(told, mine, refs[opponent], outcome, "programs", row["prompt_id"])


def _tournament_games(artifact: Artifact, folder: Path) -> Iterator[Game]:
    """Games between models; best-of-n is a way of sampling, and no version."""
    found: dict[str, Any] = json.loads((folder / "tournament.json").read_text("utf-8"))
    refs = {name: str(ref) for name, ref in artifact.inputs.items()}
    for pair, outcomes in found["games"].items():
        left, _, right = pair.partition("/")
        if left in refs and right in refs and refs[left] != refs[right]:
            # Tournaments of earlier releases do not say which prompts they asked.
            prompts = found.get("prompt_ids") or [f"{artifact.ref()}/{place}" for place in range(len(outcomes))]
            for place, outcome in enumerate(outcomes):
                told = f"{artifact.ref()}/{pair}/{place}"
                yield _game(told, refs[left], refs[right], outcome, "programs", prompts[place])


def _game(told: str, left: str, right: str, outcome: float, who: Who, prompt: str) -> Game:
    """A game with its players in the order of their names, so that it is the same from either side."""
    if left > right:
        left, right, outcome = right, left, 1 - outcome
    return Game(id=told, left=left, right=right, outcome=outcome, who=who, prompt=prompt)


def _meetings(games: Sequence[Game], order: Sequence[str]) -> tuple[Meeting, ...]:
    rank = {ref: place for place, ref in enumerate(order)}
    counts: Counter[tuple[str, str, Who, float]] = Counter()
    for game in games:
        turned = rank[game.left] > rank[game.right]
        first, second = (game.right, game.left) if turned else (game.left, game.right)
        counts[first, second, game.who, 1 - game.outcome if turned else game.outcome] += 1
    met = dict.fromkeys((first, second, who) for first, second, who, _outcome in counts)
    ordered = sorted(met, key=lambda key: (rank[key[0]], rank[key[1]], key[2]))
    return tuple(
        Meeting(first=first, second=second, who=who, wins=counts[first, second, who, 1.0],
                ties=counts[first, second, who, 0.5], losses=counts[first, second, who, 0.0])
        for first, second, who in ordered
    )  # fmt: skip
