"""The leaderboard: games from what stages and people left behind, each counted once, and ratings from them."""

import json
from pathlib import Path

import pytest

from alignment.data.jsonl import write_records
from alignment.evaluation.leaderboard import Game, leaderboard, vote_games, workspace_games
from alignment.evaluation.ratings import bradley_terry
from alignment.records import Artifact, ArtifactRef, Comparison, Message, Prompt, Response, Sampling, Vote
from alignment.workspace import Workspace

NEW, OLD, BASE = "dpo@2:bbbb", "dpo@1:aaaa", "base@1:0000"


def publish(space: Workspace, name: str, files: dict[str, str], inputs: dict[str, str] | None = None) -> None:
    output = space.folder("partial") / name
    output.mkdir()
    for file, text in files.items():
        (output / file).write_text(text)
    refs = {}
    for key, ref in (inputs or {}).items():
        stage, _, rest = ref.partition("@")
        version, _, digest = rest.partition(":")
        refs[key] = ArtifactRef(name=stage, kind="model", version=int(version), digest=digest)
    draft = Artifact(name=name, kind="x", version=1, digest="d" * 12, path=str(output), key=name, inputs=refs)
    space.publish(draft, output)


def evaluation(candidate: str, ref: str, outcomes: list[float]) -> dict[str, str]:
    found = {"candidate": candidate, "judges": {"rubric": "three raters"},
             "models": {candidate: {"artifact": ref}, "base": {"artifact": BASE}}}  # fmt: skip
    rows = [{"prompt_id": str(i), "outcomes": {"base": {"rubric": one}}} for i, one in enumerate(outcomes)]
    return {"evaluation.json": json.dumps(found), "samples.jsonl": "\n".join(map(json.dumps, rows))}


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    made = Workspace(tmp_path)
    publish(made, "evaluation", evaluation("dpo", OLD, [1, 1, 0, 0.5]))
    publish(made, "evaluation", evaluation("dpo", NEW, [1, 1, 1, 0]))
    publish(made, "again", evaluation("dpo", NEW, [1, 1, 1, 0]))  # the same games, in another stage
    games = {"sft/dpo": [1, 0], "sft/best_of_n": [0, 0]}
    publish(made, "cup", {"tournament.json": json.dumps({"games": games})}, {"sft": "sft@1:cccc", "dpo": NEW})
    return made


def test_games_are_found_and_counted_once(space: Workspace) -> None:
    found = leaderboard(space, names={NEW: ["policy/2"]})
    assert found is not None
    assert found.games == {"people": 0, "programs": 4 + 4 + 2}  # best-of-n is no version
    met = {(one.first, one.second): (one.wins, one.ties, one.losses) for one in found.meetings}
    assert met[NEW, BASE] == (3, 0, 1)
    assert met[OLD, BASE] == (2, 1, 1)
    assert met["sft@1:cccc", NEW] == (1, 0, 1) or met[NEW, "sft@1:cccc"] == (1, 0, 1)
    assert {player.ref: player.names for player in found.players}[NEW] == ("policy/2",)
    rows = [(game.left, game.right, game.outcome) for game in {g.id: g for g in workspace_games(space)}.values()]
    expected = bradley_terry(rows)
    assert [player.ref for player in found.players] == list(expected)
    for player in found.players:
        assert player.ratings["all"].value == pytest.approx(expected[player.ref].value)
        assert player.ratings["all"].low is not None
        assert player.ratings["all"].low < player.ratings["all"].value
        assert set(player.ratings) == {"all", "programs"}


def test_people_and_programs_are_told_apart(space: Workspace) -> None:
    said = [Game(id=f"arena/{i}", left=BASE, right=NEW, outcome=1.0, who="people") for i in range(3)]
    found = leaderboard(space, said)
    assert found is not None
    assert found.games["people"] == 3
    ratings = {player.ref: player.ratings for player in found.players}
    assert ratings[BASE]["people"].value > ratings[NEW]["people"].value  # people see it the other way round
    assert ratings[BASE]["programs"].value < ratings[NEW]["programs"].value
    assert "people" not in ratings[OLD]
    assert {(one.first, one.second, one.who) for one in found.meetings if one.who == "people"}


def test_nobody_played_and_nothing_is_rated(tmp_path: Path) -> None:
    assert leaderboard(Workspace(tmp_path)) is None


def test_votes_are_games_where_the_answers_are_of_different_models(tmp_path: Path) -> None:
    asked = Prompt(id="p", messages=(Message(role="user", content="Well?"),))

    def response(name: str, model: str) -> Response:
        return Response(
            id=name, prompt_id="p", text=name, model=model, sampling=Sampling(), seed=0, tokens=1, finished=True
        )

    comparison = Comparison(
        id="c", prompt=asked, responses=(response("a", NEW), response("b", OLD), response("c", NEW))
    )

    def vote(name: str, ranking: list[list[str]], **more: object) -> Vote:
        given = {
            "id": name,
            "comparison_id": "c",
            "rater": "ada",
            "rater_kind": "human",
            "outcome": "ranked",
            "ranking": ranking,
        }
        return Vote.model_validate(given | more)

    votes = [
        vote("first", [["b"], ["a"], ["c"]]),
        vote("second", [["a"], ["b", "c"]], supersedes="first"),
        vote("judge", [["b"], ["a"], ["c"]], rater_kind="judge"),
        vote("skip", [], outcome="skipped"),
    ]
    found = [(game.left, game.right, game.outcome, game.who) for game in vote_games([comparison], votes)]
    assert found == [
        (OLD, NEW, 0.0, "people"), (OLD, NEW, 0.5, "people"),
        (OLD, NEW, 1.0, "programs"), (OLD, NEW, 1.0, "programs"),
    ]  # fmt: skip
    space = Workspace(tmp_path)
    output = space.folder("partial") / "votes"
    output.mkdir()
    write_records(output / "comparisons.jsonl", [comparison])
    write_records(output / "votes.jsonl", votes)
    space.publish(Artifact(name="votes", kind="preferences", version=1, digest="d", path=str(output), key="v"), output)
    assert len(list(workspace_games(space))) == 4
