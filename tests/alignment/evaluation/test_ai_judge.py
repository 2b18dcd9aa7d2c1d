"""An AI judge in the raters' place: in an evaluation, in a tournament, calibrated and not."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from alignment.data.jsonl import read_records
from alignment.errors import StageError
from alignment.evaluation.metric_names import evaluation_metric_names
from alignment.judges.protocol import JudgeCorrection
from alignment.judges.report import Figure, JudgeReport
from alignment.metrics.results import EvaluatedPrompt, Evaluation
from alignment.recipe.judges import judge_digest
from alignment.recipe.recipe import Recipe
from alignment.recipe.stages.evaluate import EvaluateStage
from alignment.recipe.stages.experiments.tournament import TournamentStage
from alignment.records import Artifact, Prompt
from alignment.registry.win_rates import win_rates
from alignment.stage import StageContext
from alignment.stages import evaluate as evaluation_stage
from alignment.stages.experiments import tournament
from alignment.stages.experiments.tournament import Tournament
from tests.alignment.judges.fake_server import Answer, FakeServer, prefers_shorter
from tests.contexts import stage_context

MakeContext = Callable[..., StageContext]


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    fake.behave = prefers_shorter
    yield fake
    fake.stop()


@pytest.fixture
def make(tmp_path: Path, policies: dict[str, Artifact], recipe: Recipe, prompts: list[Prompt]) -> MakeContext:
    data = {"prompts": tmp_path / "prompts.jsonl"}
    data["prompts"].write_text("".join(json.dumps({"prompt": p.messages[0].content}) + "\n" for p in prompts))

    def make(folder: str, **more: Artifact) -> StageContext:
        for part in ("output", "checkpoints", "kept"):
            (tmp_path / folder / part).mkdir(parents=True, exist_ok=True)
        root = tmp_path / folder
        return stage_context("check", recipe, policies | more, data, root / "output", root / "checkpoints",
                            kept=root / "kept")  # fmt: skip

    return make


def settings(server: FakeServer, **changes: Any) -> EvaluateStage:
    judge = {"kind": "generative", "endpoint": {"url": server.url, "model": "m"}}
    return EvaluateStage.model_validate(
        {"kind": "evaluate", "model": "short", "against": ["base"], "judge": judge, "kl_prompts": 2,
         "sampling": {"temperature": 0.0, "max_new_tokens": 10}, **changes}
    )  # fmt: skip


def calibration(folder: Path, digest: str, kappa: float = 0.5) -> Artifact:
    """What a stage `judge` measured."""
    one = Figure(value=kappa, low=0.3, high=0.7, n=40)
    report = JudgeReport(
        judge="m (pairwise)", kind="generative", digest=digest, correction=JudgeCorrection(), calibrated=True, pairs=40,
        raters="3 people", kappa=one, position_consistency=one, position_consistency_uncorrected=one, position_bias=0.0,
        ties=0, unparsable=0, failed=0, unasked=0, suspect=0, tally={},
    )  # fmt: skip
    folder.mkdir()
    (folder / "judge.json").write_text(report.model_dump_json())
    return Artifact(name="judged", kind="preferences", version=1, digest="0", path=str(folder), key="k")


def test_an_uncalibrated_judge_says_so_wherever_it_shows(server: FakeServer, make: MakeContext) -> None:
    context, stage = make("one"), settings(server)
    result = evaluation_stage.run(stage, context)
    found = Evaluation.model_validate_json((context.output / "evaluation.json").read_text())
    assert list(result.metrics) == evaluation_metric_names(stage)
    assert (result.metrics["judge.calibrated"], result.metrics["judge.unread"]) == (0, 0)
    assert found.judges == {
        "judge": "an AI judge, uncalibrated (m (pairwise)): no rater's votes say how far to trust it"
    }
    assert result.metrics["win_rate.base.judge.low"] > 0.5  # the adapter answers in two words
    for sample in read_records(context.output / "samples.jsonl", EvaluatedPrompt):
        mine, theirs = len(sample.texts["short"]), len(sample.texts["base"])
        assert sample.outcomes["base"]["judge"] == (0.5 if mine == theirs else float(mine < theirs))
    [rate] = win_rates(result.metrics)
    assert rate.judged_by == "an AI judge, uncalibrated"


def test_a_calibrated_judge_is_the_one_that_was_measured(server: FakeServer, make: MakeContext, tmp_path: Path) -> None:
    stage = settings(server, calibrated_by="judged")
    assert stage.judge is not None
    context = make("two", judged=calibration(tmp_path / "judged", judge_digest(stage.judge)))
    result = evaluation_stage.run(stage, context)
    found = Evaluation.model_validate_json((context.output / "evaluation.json").read_text())
    assert result.metrics["judge.calibrated"] == 1
    assert found.judges["judge"] == "an AI judge (m (pairwise)), whose κ with 3 people is 0.50"
    assert [rate.judged_by for rate in win_rates(result.metrics)] == ["an AI judge"]
    other = make("three", judged=calibration(tmp_path / "other", "another"))
    with pytest.raises(StageError, match="judged calibrated another judge than check's"):
        evaluation_stage.run(stage, other)


def test_what_is_not_read_is_a_tie_and_said(server: FakeServer, make: MakeContext) -> None:
    server.behave = lambda body, number: Answer("A, surely") if number % 6 == 0 else prefers_shorter(body, number)
    context, stage = make("four"), settings(server)
    result = evaluation_stage.run(stage, context)
    found = Evaluation.model_validate_json((context.output / "evaluation.json").read_text())
    unread = int(result.metrics["judge.unread"])
    assert unread > 0
    assert f"; {unread} of " in found.judges["judge"]
    assert found.win_rates[0].rate.ties >= unread
    server.behave = lambda _body, _number: Answer("A, surely")
    with pytest.raises(StageError, match="gave no verdict on"):
        evaluation_stage.run(stage, make("five"))


def test_a_tournament_is_judged(server: FakeServer, make: MakeContext) -> None:
    context = make("six")
    stage = TournamentStage.model_validate(
        {"kind": "tournament", "policies": ["other", "short"], "model": "base", "kl_prompts": 2,
         "judge": settings(server).judge, "sampling": {"temperature": 0.0, "max_new_tokens": 10}}
    )  # fmt: skip
    tournament.run(stage, context)
    found = Tournament.model_validate_json((context.output / "tournament.json").read_text())
    assert found.winner == "short"
    assert found.judge.startswith("an AI judge, uncalibrated")
    assert set(found.games) == {"base/other", "base/short", "other/short"}
    asked = len(server.requests)
    tournament.run(stage, context)
    assert len(server.requests) == asked


def test_who_compares_in_a_tournament_is_one_of_both(server: FakeServer) -> None:
    whole = {"kind": "tournament", "policies": ["a", "b"], "model": "base"}
    with pytest.raises(ValidationError, match="who compares"):
        TournamentStage.model_validate(whole)
    with pytest.raises(ValidationError, match="who compares"):
        TournamentStage.model_validate(whole | {"judge": settings(server).judge, "raters": {"rubric": "r"}})
    with pytest.raises(ValidationError, match="the calibration of a judge"):
        settings(server, judge=None, calibrated_by="judged")
