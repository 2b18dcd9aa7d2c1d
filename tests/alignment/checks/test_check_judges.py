"""What is wrong with a recipe's judges, said before anything runs, and without saying a secret again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment.checks.recipe import check_recipe
from alignment.errors import InputError
from alignment.recipe.resolved import resolve_recipe

MakeRecipe = Callable[..., Path]
JUDGE = {"kind": "label_probabilities", "question": "Which?"}
SECRET = "sk-do-not-say-this"


def faults(path: Path, whole: dict[str, Any]) -> str:
    path.write_text(json.dumps(whole))
    try:
        recipe = resolve_recipe(path)
    except InputError as error:
        return str(error)
    return "\n".join(map(str, check_recipe(recipe)))


@pytest.fixture
def recipe(make_recipe: MakeRecipe, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    path = make_recipe(tmp_path, stages=("sft", "responses", "evaluation"))
    whole = json.loads(path.read_text())
    evaluation = whole["stages"].pop("evaluation")
    whole["stages"]["judge"] = {"kind": "judge", "responses": "responses", "judge": dict(JUDGE)}
    whole["stages"]["grpo"] = {
        "kind": "grpo", "model": "sft", "sampling": {"max_new_tokens": 8},
        "rewards": [{"kind": "judge", "judge": dict(JUDGE), "calibrated_by": "judge"}],
    }  # fmt: skip
    whole["stages"]["evaluation"] = {**evaluation, "model": "grpo", "against": ["sft"]}
    del whole["stages"]["evaluation"]["reward"]
    return path, whole


def test_a_recipe_with_judges_is_right(recipe: tuple[Path, dict[str, Any]]) -> None:
    assert faults(*recipe) == ""


def test_every_fault_at_once(recipe: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    path, whole = recipe
    stages = whole["stages"]
    endpoint = {"url": "https://host/v1", "model": "m", "api_key_env": "JUDGE_KEY"}
    stages["judge"]["judge"] = {"kind": "generative", "endpoint": endpoint}
    stages["grpo"]["rewards"] += [{"kind": "judge", "name": "other", "judge": {**JUDGE, "folder": "nowhere"}}]
    stages["evaluation"]["rewards"] = [{"kind": "judge", "judge": JUDGE}]
    found = faults(path, whole)
    assert "stages.judge.judge.endpoint.api_key_env: the environment variable JUDGE_KEY is not set" in found
    assert "stages.grpo.rewards.0.calibrated_by: judge calibrates another judge than this one" in found
    assert "stages.grpo.rewards.1.judge.folder: no folder" in found
    assert "stages.evaluation.rewards.0.judge.form: a judge of form pairwise compares" in found
    stages["grpo"]["rewards"][0]["calibrated_by"] = "responses"
    assert "stages.grpo.rewards: responses" not in faults(path, whole)
    assert "responses makes responses, not a judge's calibration" in faults(path, whole)


def test_a_key_in_the_recipe_is_not_said_again(recipe: tuple[Path, dict[str, Any]]) -> None:
    path, whole = recipe
    endpoint = {"url": f"https://user:{SECRET}@host/v1", "model": "m", "api_key_env": SECRET}
    whole["stages"]["judge"]["judge"] = {"kind": "generative", "endpoint": endpoint}
    found = faults(path, whole)
    assert SECRET not in found
    assert "stages.judge.judge.endpoint.api_key_env: not the name of an environment variable" in found
    assert "stages.judge.judge.endpoint.url: not an http(s) address" in found


@pytest.mark.parametrize(
    ("judge", "said"),
    [
        ({"kind": "generativ"}, "unknown kind 'generativ'; did you mean generative?"),
        ({}, "the judge has no kind"),
        ({**JUDGE, "questions": "?"}, "stages.judge.judge.questions: unknown key; did you mean question?"),
        ({"kind": "generative", "model": "base", "form": "rubric"}, "form rubric has criteria"),
        ({"kind": "generative"}, "name one of endpoint, model and folder"),
        ({**JUDGE, "form": "score", "examples": [{"prompt": "q", "a": "x", "b": "y", "verdict": "A"}]}, "judges none"),
        ({"kind": "reward_model", "model": "sft"}, "sft makes a model, not a reward model"),
        ({**JUDGE, "model": "grpo"}, "grpo comes later"),
        ({"kind": "pair_classifier", "model": "sft"}, "sft makes a model, not a pair classifier"),
    ],
)
def test_one_fault(recipe: tuple[Path, dict[str, Any]], judge: dict[str, Any], said: str) -> None:
    path, whole = recipe
    whole["stages"]["judge"]["judge"] = judge
    assert said in faults(path, whole)


def test_min_kappa_and_weights_need_votes(recipe: tuple[Path, dict[str, Any]]) -> None:
    path, whole = recipe
    whole["stages"]["judge"]["min_kappa"] = 0.2
    assert "name in calibration the stage that has their votes" in faults(path, whole)
    del whole["stages"]["judge"]["min_kappa"]
    whole["stages"]["judge"]["weights"] = {"human": 1}
    assert "name in calibration the stage that has them" in faults(path, whole)


def test_a_judge_that_evaluates(recipe: tuple[Path, dict[str, Any]]) -> None:
    path, whole = recipe
    evaluation = whole["stages"]["evaluation"]
    evaluation |= {"judge": dict(JUDGE), "calibrated_by": "judge"}
    assert faults(path, whole) == ""
    evaluation["judge"] = {**JUDGE, "question": "Another?", "folder": "nowhere"}
    found = faults(path, whole)
    assert "stages.evaluation.judge.folder: no folder" in found
    assert "stages.evaluation.calibrated_by: judge calibrates another judge than this one" in found
    evaluation |= {"judge": {**JUDGE, "model": "responses"}, "calibrated_by": None}
    assert "stages.evaluation.judge: responses makes responses, not a model" in faults(path, whole)


def test_stages_that_write_feedback(recipe: tuple[Path, dict[str, Any]]) -> None:
    path, whole = recipe
    principle = {"name": "short", "critique": "c", "revision": "r"}
    stages = whole["stages"]
    constitution = {"kind": "constitution", "responses": "responses", "principles": [principle],
                    "writer": {"model": "base"}}  # fmt: skip
    made = {"kind": "synthesis", "models": ["base", "sft"], "principles": {"brief": "Be brief."},
            "sampling": {"max_new_tokens": 8}}  # fmt: skip
    again = {"kind": "sft", "demonstrations": "revised", "max_length": 64}
    whole["stages"] = {"sft": stages["sft"], "responses": stages["responses"], "revised": constitution, "made": made,
                       "again": again}  # fmt: skip
    del whole["gate"]
    whole["data"] = {key: value for key, value in whole["data"].items() if key != "held_out"}
    assert faults(path, whole) == ""
    whole["stages"]["revised"] = {**constitution, "constitution": "nowhere.yaml"}
    assert "give principles, or the file of a constitution" in faults(path, whole)
    whole["stages"]["revised"] = {**constitution, "principles": [], "constitution": "nowhere.yaml"}
    assert "nowhere.yaml: cannot be read" in faults(path, whole)
    whole["stages"]["again"] = {**again, "demonstrations": "made"}
    assert "made makes responses, not demonstrations" in faults(path, whole)
    endpoint = {"url": "https://host/v1", "model": "m", "api_key_env": "WRITER_KEY"}
    whole["stages"]["revised"] = {**constitution, "writer": {"endpoint": endpoint}}
    assert "stages.revised.writer.endpoint.api_key_env: the environment variable WRITER_KEY is not set" in faults(
        path, whole
    )
    whole["stages"]["made"] = {**made, "models": ["responses"]}
    assert "stages.made.models: responses makes responses, not a model" in faults(path, whole)
