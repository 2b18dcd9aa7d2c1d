"""Feedback from a judge on the tiny model, whole: calibration against simulated raters, DPO, GRPO, refusal, report."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Rlhf = Callable[..., Any]
MakeRecipe = Callable[..., Path]
JUDGE = {"kind": "label_probabilities", "model": "base", "question": "Which?", "min_label_mass": 0.0}
LORA = {"rank": 4, "alpha": 8}


@pytest.fixture(scope="module")
def recipe(make_recipe: MakeRecipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sft → responses → simulated raters → judge → DPO; GRPO with the same judge; a second judge that scores."""
    path = make_recipe(tmp_path_factory.mktemp("rlaif") / "recipe")
    whole = json.loads(path.read_text())
    stages = {name: whole["stages"][name] for name in ("sft", "responses")}
    stages["raters"] = {**whole["stages"]["preferences"], "comparisons_per_prompt": 1}
    stages["judge"] = {
        "kind": "judge", "responses": "responses", "calibration": "raters", "min_kappa": -1, "judge": JUDGE,
        "weights": {"judge": 1, "simulated": 0.1},
    }  # fmt: skip
    stages["dpo"] = {**whole["stages"]["dpo"], "preferences": "judge", "epochs": 1, "cut_chosen": "keep"}
    stages["grpo"] = {
        "kind": "grpo", "model": "sft", "steps": 2, "episodes": 8, "per_prompt": 4, "batch_size": 8,
        "learning_rate": 1e-3, "sampling": {"max_new_tokens": 8}, "checkpoint_every": 1, "lora": LORA,
        "rewards": [
            {"kind": "judge", "judge": JUDGE, "calibrated_by": "judge", "opponents": 2},
            {"kind": "judge", "judge": {**JUDGE, "form": "score"}, "name": "grade", "weight": 0.5},
        ],
    }  # fmt: skip
    stages["evaluation"] = {**whole["stages"]["evaluation"], "against": ["sft"], "reference": "sft"}
    del stages["evaluation"]["reward"]
    whole["stages"] = stages
    path.write_text(json.dumps(whole))
    return path


def test_a_judge_is_measured_and_trained_on(rlhf: Rlhf, recipe: Path, tmp_path: Path) -> None:
    ended = rlhf("run", recipe, "-w", tmp_path)
    assert (ended.code, ended.err) == (0, "")
    report = json.loads((tmp_path / "runs/tiny-1/report.json").read_text())
    stages = {stage["name"]: stage for stage in report["stages"]}
    assert {stage["status"] for stage in stages.values()} == {"completed"}
    figures = stages["judge"]["metrics"]
    assert figures["calibrated"] == 1
    assert -1 <= figures["kappa.low"] <= figures["kappa"] <= figures["kappa.high"] <= 1
    assert {"ceiling", "position_consistency", "position_bias", "longer", "temperature", "cost"} <= set(figures)
    table = report["judges"]["judge"]
    assert table["raters"] == "3 simulated raters"
    assert report["uncalibrated"] == ["grpo"]  # its second judge is nobody's to trust
    assert stages["dpo"]["metrics"]["pairs"] == figures["pairs"]
    assert 0 < stages["grpo"]["metrics"]["reward.judge"] < 1
    page = (tmp_path / "runs/tiny-1/report.html").read_text()
    assert "Cohen’s κ with them" in page
    assert "grpo: the judge is uncalibrated" in page
    assert "an AI judge (label probabilities of base), whose κ with 3 simulated raters is" in page

    ended = rlhf("run", recipe, "-w", tmp_path, "--set", "stages.judge.min_kappa=0.99")
    assert ended.code == 1
    assert "judge refuses: Cohen's κ" in ended.err + ended.out
    assert "Traceback" not in ended.err
    report = json.loads((tmp_path / "runs/tiny-2/report.json").read_text())
    assert [stage["status"] for stage in report["stages"]][-1] == "failed"
    assert {stage["name"]: stage["cached"] for stage in report["stages"]}["raters"]


@pytest.mark.slow
def test_a_folder_judges_and_its_weights_are_part_of_the_key(
    rlhf: Rlhf, recipe: Path, tmp_path: Path, make_model: Callable[..., Path]
) -> None:
    folder = make_model(tmp_path / "judge", seed=3)
    whole = json.loads(recipe.read_text())
    whole["stages"] = {name: whole["stages"][name] for name in ("sft", "responses", "judge")}
    whole["stages"]["judge"] |= {"judge": {**JUDGE, "folder": str(folder)}}
    for name in ("calibration", "min_kappa", "weights"):
        del whole["stages"]["judge"][name]
    del whole["gate"]
    path = recipe.with_name("folder.yaml")
    path.write_text(json.dumps(whole))
    assert rlhf("run", path, "-w", tmp_path / "w").code == 0
    make_model(folder, seed=4)
    assert rlhf("run", path, "-w", tmp_path / "w").code == 0
    report = json.loads((tmp_path / "w/runs/tiny-2/report.json").read_text())
    cached = {stage["name"]: stage["cached"] for stage in report["stages"]}
    assert cached == {"base": True, "sft": True, "responses": True, "judge": False}
    assert report["uncalibrated"] == ["judge"]
    assert "an AI judge, uncalibrated" in report["preferences"][0]["raters"]
