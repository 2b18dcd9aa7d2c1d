"""The stage `judge`: votes, pairs, calibration, refusal, what is kept; and the same judge as a reward."""

import json
from pathlib import Path
from typing import Any

import pytest

from alignment.data.jsonl import read_records, write_records
from alignment.errors import StageError
from alignment.judges import openai_endpoint as endpoint_module
from alignment.judges.report import JudgeReport
from alignment.preferences.comparisons import make_comparisons
from alignment.recipe.recipe import Recipe
from alignment.recipe.rewards.judge import JudgeReward
from alignment.recipe.run_settings import ModelSettings
from alignment.recipe.stages.feedback.judge import JudgeStage
from alignment.recipe.stages.feedback.preferences import PreferencesStage
from alignment.records import Artifact, Message, PreferencePair, Prompt, Response, Sampling, Vote
from alignment.reward.factory import build_rewards
from alignment.reward.protocol import RewardInput as Asked
from alignment.stage import StageContext
from alignment.stages.feedback.judge import run
from alignment.stages.feedback.preferences import run as run_raters
from tests.alignment.judges.fake_server import Answer, FakeServer, prefers_shorter
from tests.contexts import stage_context

RUBRIC = """\
name: brief
criteria:
  - {name: few_words, text: The answer is short., measure: words, weight: 1, full_at_most: 2, zero_at: 10}
"""
WORDS = ("Oslo", "It is Oslo", "Oslo it is, as far as I know", "The capital of the country is the old town of Oslo")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "FIRST_WAIT", 0.01)


def sampled(folder: Path, prompts: int = 12) -> Artifact:
    """Four answers of different lengths to each prompt."""
    asked = [
        Prompt(id=f"p{n}", messages=(Message(role="user", content=f"What is capital {n}?"),)) for n in range(prompts)
    ]
    answers = [
        Response(id=f"p{n}r{k}", prompt_id=f"p{n}", text=f"{text} {n}.", model="policy@1:abc", sampling=Sampling(),
                 seed=k, tokens=5, finished=True)
        for n in range(prompts) for k, text in enumerate(WORDS)
    ]  # fmt: skip
    write_records(folder / "prompts.jsonl", asked)
    write_records(folder / "responses.jsonl", answers)
    return Artifact(name="responses", kind="responses", version=1, digest="0", path=str(folder), key="k")


def settings(server: FakeServer | None = None, **changes: Any) -> JudgeStage:
    judge = {"kind": "generative", "endpoint": {"url": server.url if server else "http://127.0.0.1:1/v1", "model": "m"}}
    return JudgeStage.model_validate({"kind": "judge", "responses": "responses", "judge": judge, **changes})


def context(folder: Path, stage: JudgeStage, *more: Artifact) -> StageContext:
    folder.mkdir(exist_ok=True)
    for part in ("output", "checkpoints", "kept"):
        (folder / part).mkdir(exist_ok=True)
    inputs = {"responses": sampled(folder / "responses")} | {artifact.name: artifact for artifact in more}
    recipe = Recipe(name="r", seed=3, model=ModelSettings(base="b", dtype="float32"), stages={"judge": stage})
    return stage_context("judge", recipe, inputs, {}, folder / "output", folder / "checkpoints", kept=folder / "kept")


def raters(folder: Path, noise: float = 0.3) -> Artifact:
    """Simulated raters who like short answers, on the same responses."""
    folder.mkdir()
    (folder / "rubric.yaml").write_text(RUBRIC)
    stage = PreferencesStage.model_validate(
        {"kind": "preferences", "responses": "responses", "raters": {"rubric": "rubric.yaml", "noise": noise}}
    )
    for part in ("output", "checkpoints"):
        (folder / part).mkdir()
    recipe = Recipe(name="r", seed=3, model=ModelSettings(base="b"), stages={"raters": stage})
    inputs = {"responses": sampled(folder / "responses")}
    run_raters(stage, stage_context("raters", recipe, inputs, {"rubric": folder / "rubric.yaml"}, folder / "output",
                                   folder / "checkpoints"))  # fmt: skip
    return Artifact(name="raters", kind="preferences", version=1, digest="1", path=str(folder / "output"), key="k")


def report_of(found: StageContext) -> JudgeReport:
    return JudgeReport.model_validate_json((found.output / "judge.json").read_text())


def test_without_votes_the_judge_is_called_uncalibrated(server: FakeServer, tmp_path: Path) -> None:
    server.behave = prefers_shorter
    stage = settings(server)
    where = context(tmp_path / "s", stage)
    result = run(stage, where)
    pairs = read_records(where.output / "pairs.jsonl", PreferencePair)
    assert result.metrics["comparisons"] == len(pairs) == 24
    assert all(len(pair.chosen) < len(pair.rejected) for pair in pairs)
    assert {pair.rater_kind for pair in pairs} == {"judge"}
    report = report_of(where)
    assert not report.calibrated
    assert (report.kappa, report.agreement, report.ceiling, report.ece) == (None, None, None, None)
    assert result.metrics["calibrated"] == 0
    assert "kappa" not in result.metrics
    assert report.position_consistency.value == 1
    assert report.longer is not None
    assert report.longer.value == 0


def test_the_judge_is_measured_against_simulated_raters(server: FakeServer, tmp_path: Path) -> None:
    server.behave = prefers_shorter
    stage = settings(server, calibration="raters", min_kappa=0.5)
    where = context(tmp_path / "s", stage, raters(tmp_path / "raters"))
    result = run(stage, where)
    report = report_of(where)
    assert report.raters == "3 simulated raters"
    assert report.kappa is not None
    assert report.kappa.value is not None
    assert report.kappa.value > 0.8
    assert report.ceiling is not None
    assert result.metrics["kappa"] == report.kappa.value
    votes = read_records(where.output / "votes.jsonl", Vote)
    assert {vote.rater_kind for vote in votes} == {"judge", "simulated"}
    assert len(server.requests) == 48  # the raters' comparisons are the stage's own: none is asked about twice


def test_below_min_kappa_the_stage_refuses_and_says_so(server: FakeServer, tmp_path: Path) -> None:
    def likes_long(body: dict[str, Any], number: int) -> Answer:
        said = prefers_shorter(body, number).text
        return Answer(said.replace('"A"', '"_"').replace('"B"', '"A"').replace('"_"', '"B"'))

    server.behave = likes_long
    stage = settings(server, calibration="raters", min_kappa=0.2)
    where = context(tmp_path / "s", stage, raters(tmp_path / "raters"))
    with pytest.raises(StageError, match=r"judge refuses: Cohen's κ of the judge .* is -[01]\.\d\d on 24 pairs"):
        run(stage, where)
    assert not list(where.output.iterdir())
    server.behave = lambda _body, _number: Answer("I cannot say")
    with pytest.raises(StageError, match="is undefined"):
        run(stage.model_copy(update={"judge": settings(server).judge.model_copy(update={"question": "other?"})}),
            context(tmp_path / "t", stage, raters(tmp_path / "raters2")))  # fmt: skip


def test_raters_votes_are_mixed_in_by_weight(server: FakeServer, tmp_path: Path) -> None:
    server.behave = lambda body, number: Answer('{"verdict": "tie"}')
    stage = settings(server, calibration="raters")
    with pytest.raises(StageError, match="24 are ties"):
        run(stage, context(tmp_path / "s", stage, raters(tmp_path / "raters")))
    mixed = settings(server, calibration="raters", weights={"judge": 0.5, "simulated": 1.0})
    where = context(tmp_path / "t", mixed, raters(tmp_path / "raters2"))
    result = run(mixed, where)
    assert result.metrics["pairs"] > 12
    assert {pair.raters for pair in read_records(where.output / "pairs.jsonl", PreferencePair)} == {4}


def test_peoples_pairs_calibrate_where_their_votes_are_not_there(server: FakeServer, tmp_path: Path) -> None:
    server.behave = prefers_shorter
    folder = tmp_path / "people"
    responses = sampled(tmp_path / "again")
    comparisons = make_comparisons(
        read_records(Path(responses.path) / "prompts.jsonl", Prompt),
        read_records(Path(responses.path) / "responses.jsonl", Response), 1, 99,
    )  # fmt: skip
    pairs = []
    for one in comparisons:
        short, long = sorted((response.text for response in one.responses), key=len)
        pairs.append(PreferencePair(id=one.id, prompt_id=one.prompt.id, prompt=one.prompt.messages, chosen=short,
                                    rejected=long, rater_kind="human", agreement=1.0))  # fmt: skip
    write_records(folder / "pairs.jsonl", pairs)
    stage = settings(server, calibration="people", min_kappa=0.4, weights={"human": 1})
    where = context(tmp_path / "s", stage, Artifact(name="people", kind="preferences", version=1, digest="2",
                                                    path=str(folder), key="k"))  # fmt: skip
    run(stage, where)
    report = report_of(where)
    assert report.raters == "people (12 pairs)"
    assert report.kappa is not None
    assert (report.kappa.value, report.kappa.n) == (1.0, 12)


def test_a_stage_that_was_stopped_asks_nothing_twice(server: FakeServer, tmp_path: Path) -> None:
    server.behave = lambda body, number: prefers_shorter(body, number) if number < 40 else Answer(status=401)
    stage = settings(server)
    with pytest.raises(StageError, match="401"):
        run(stage, context(tmp_path / "s", stage))
    paid = len(list((tmp_path / "s" / "kept").rglob("*.json")))
    assert 30 <= paid <= 40
    server.behave = prefers_shorter
    before = len(server.requests)
    result = run(stage, context(tmp_path / "s", stage))
    assert len(server.requests) - before == 48 - paid
    assert result.metrics["answers_kept"] == paid
    assert result.metrics["asked"] == 48


def test_a_spent_budget_may_go_on_with_what_was_judged(server: FakeServer, tmp_path: Path) -> None:
    server.behave = prefers_shorter
    judge = json.loads(settings(server).judge.model_dump_json())
    judge["endpoint"] |= {"budget": {"tokens": 1000}, "when_spent": "use", "concurrency": 1}
    stage = settings(server, judge=judge)
    result = run(stage, context(tmp_path / "s", stage))
    assert 0 < result.metrics["pairs"] < 24
    assert result.metrics["unasked"] > 0
    assert result.metrics["judge_tokens"] <= 1000


@pytest.mark.parametrize("form", ["pairwise", "score"])
def test_a_judge_rewards_while_the_policy_trains(server: FakeServer, tmp_path: Path, form: str) -> None:
    server.behave = prefers_shorter
    stage = settings(server, judge=json.loads(settings(server).judge.model_dump_json()) | {"form": form})
    where = context(tmp_path / "s", stage)
    run(stage, where)
    calibrated = Artifact(name="judge", kind="preferences", version=1, digest="3", path=str(where.output), key="k")
    reward = JudgeReward.model_validate(
        {"kind": "judge", "judge": stage.judge.model_dump(), "calibrated_by": "judge", "opponents": 3}
    )
    other = context(tmp_path / "t", stage, calibrated)
    rewards = build_rewards((reward,), other)
    prompt = Prompt(id="p", messages=(Message(role="user", content="What is the capital?"),))
    answers = [Asked(prompt, text, 3) for text in (*WORDS, WORDS[0])]
    scores = rewards.score(answers)["judge"]
    assert scores[:4] == sorted(scores[:4], reverse=True)
    assert len(set(scores[:4])) == 4
    assert scores[4] == scores[0]
    assert all(0 <= score <= 1 for score in scores)
    if form == "pairwise":
        assert scores[0] > 0.99
        assert scores[3] < 0.01
    another = reward.model_copy(update={"judge": reward.judge.model_copy(update={"question": "Which is longer?"})})
    with pytest.raises(StageError, match="calibrated another judge"):
        build_rewards((another,), other)


def test_answers_without_a_verdict_get_the_mean_and_too_many_end_the_run(server: FakeServer, tmp_path: Path) -> None:
    def fussy(body: dict[str, Any], number: int) -> Answer:
        return Answer("no idea") if "Oslo it is" in body["messages"][-1]["content"] else prefers_shorter(body, number)

    server.behave = fussy
    stage = settings(server)
    reward = JudgeReward.model_validate({"kind": "judge", "judge": stage.judge.model_dump(), "opponents": 3})
    rewards = build_rewards((reward,), context(tmp_path / "s", stage))
    prompt = Prompt(id="p", messages=(Message(role="user", content="What is the capital?"),))
    scores = rewards.score([Asked(prompt, text, 3) for text in WORDS])["judge"]
    assert scores[2] == pytest.approx((scores[0] + scores[1] + scores[3]) / 3)
    server.behave = lambda _body, _number: Answer("no idea")
    with pytest.raises(StageError, match="no verdict on 4 of 4 answers"):
        rewards.score([Asked(prompt, f"{text}!", 3) for text in WORDS])
