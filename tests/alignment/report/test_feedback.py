"""Constitutions and syntheses in the report: read from their files, and shown with what was left out."""

from pathlib import Path
from typing import Any

import lxml.html

from alignment.preferences.ai_feedback_report import Check, ConstitutionFigures, PrincipleFigures, SynthesisFigures
from alignment.recipe.recipe import Recipe
from alignment.records import Artifact
from alignment.report.feedback import constitutions, syntheses
from alignment.report.judges import uncalibrated
from alignment.report.page import render
from alignment.report.plots import short_judge

JUDGE = {"kind": "label_probabilities"}
STAGES = {
    "revised": {"kind": "constitution", "responses": "made", "writer": {"model": "base"},
                "principles": [{"name": "short", "critique": "c", "revision": "r"}]},
    "made": {"kind": "synthesis", "models": ["base"], "principles": {"brief": "Be brief."}},
    "check": {"kind": "evaluate", "model": "base", "judge": JUDGE},
}  # fmt: skip
REVISED = ConstitutionFigures(
    writer="base@1:abc", rounds=1, responses=1200, revised=700, left_out={"unchanged": 400, "cut_off": 100},
    principles=(PrincipleFigures(name="short", drawn=1200, revised=700, left_out={"unchanged": 400, "cut_off": 100}),),
    words_before=30.0, words_after=12.0, tally={"money": 0.0},
)  # fmt: skip
MADE = SynthesisFigures(
    checks=(Check(what="prompts that are near-duplicates of another", checked=50, left_out=1,
                  examples=(("Why <b>?", "Why, why?"),)),),
    models={"base": 9, "sft": 8}, principles={"brief": 17}, empty=2, failed=3, tally={"money": 0.0},
)  # fmt: skip


def artifact(folder: Path, name: str) -> Artifact:
    return Artifact(name=name, kind="x", version=1, digest="0", path=str(folder), key=name)


def test_both_are_read_and_shown(tmp_path: Path, finished_run: Any) -> None:
    recipe = Recipe.model_validate({"name": "x", "model": {"base": "x"}, "stages": STAGES})
    for name, file, figures in (("revised", "constitution.json", REVISED), ("made", "synthesis.json", MADE)):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(figures.model_dump_json(), "utf-8")
    made = {name: artifact(tmp_path / name, name) for name in ("revised", "made")}
    assert constitutions(recipe, {}) == syntheses(recipe, {}) == {}
    found = {"constitutions": constitutions(recipe, made), "syntheses": syntheses(recipe, made)}
    assert found == {"constitutions": {"revised": REVISED}, "syntheses": {"made": MADE}}
    page = lxml.html.document_fromstring(render(finished_run.report().model_copy(update=found)))
    [revised] = page.xpath("//*[@id='constitution-revised']")
    text = " ".join(revised.text_content().split())
    assert "base@1:abc criticised 1 200 responses" in text
    assert "steps that gave none: 400 unchanged, 100 cut off" in text
    [made_part] = page.xpath("//*[@id='synthesis-made']")
    text = " ".join(made_part.text_content().split())
    assert "by model: base 9, sft 8; by principle: brief 17. Empty: 2; without an answer: 3." in text
    assert "“Why <b>?” repeats “Why, why?”" in text
    assert not made_part.xpath(".//b")


def test_an_evaluation_by_a_judge_without_votes_is_called_uncalibrated(tmp_path: Path) -> None:
    recipe = Recipe.model_validate({"name": "x", "model": {"base": "x"}, "stages": STAGES})
    assert uncalibrated(recipe, {"check": artifact(tmp_path, "check")}, {}) == ("check",)
    assert uncalibrated(recipe, {}, {}) == ()
    assert short_judge("judge", "an AI judge, uncalibrated (m)") == "AI judge, uncalibrated"
    assert short_judge("rubric", "3 simulated raters") == "simulated raters"
