"""The tournament and the over-optimisation experiment in the report: read from their files, drawn, said in words."""

import json
from pathlib import Path
from typing import Any

import lxml.html
import pytest

from alignment.recipe.recipe import Recipe
from alignment.records import Artifact
from alignment.report import distance_plots
from alignment.report.experiments import overoptimisations, tournaments
from alignment.report.page import render

RATERS = {"rubric": "r.yaml"}
STAGES = {
    "play": {"kind": "tournament", "policies": ["dpo", "ppo"], "model": "sft", "raters": RATERS},
    "ways": {"kind": "overoptimisation", "policies": ["ppo"], "model": "sft", "raters": RATERS, "reward": "reward"},
}


def interval(value: float, room: float = 0.1) -> dict[str, Any]:
    return {"value": value, "low": value - room, "high": value + room, "n": 30}


def standing(player: str, rate: float | None, **more: Any) -> dict[str, Any]:
    told = {"player": player, "rate": None if rate is None else interval(rate) | {"ties": 2}, "rating": 1000.0,
            "rating_low": 950.0, "rating_high": 1050.0, "kl": 0.0, "kl_low": None, "kl_high": None, "kl_bound": False,
            "model": True, "length": 12.0}  # fmt: skip
    return told | more


TOURNAMENT = {
    "start": "sft", "winner": "ppo", "prompts": 32, "judge": "3 simulated raters by the rubric brief", "games": {},
    "standings": [
        standing("best_of_n", 0.7, kl=1.2, kl_bound=True, model=False), standing("ppo", 0.66, kl=6.0),
        standing("dpo", 0.5, kl=2.0), standing("sft", None),
    ],
}  # fmt: skip
WAYS = {
    "start": "sft", "prompts": 24, "judge": "1 simulated raters' scores", "proxy_unit": 1.0, "true_unit": 1.0,
    "ways": {"ppo": [
        {"step": step, "kl": kl, "proxy": interval(proxy), "true": interval(true)}
        for step, kl, proxy, true in ((4, 1.0, 0.5, 0.4), (8, 4.0, 1.2, 0.6), (12, 16.0, 2.5, -0.2))
    ]},
    "shapes": {"ppo": {"words": "rose, then fell", "best_step": 8, "best_kl": 4.0, "rise": interval(0.6),
                       "fall": interval(-0.8), "proxy_rise": interval(2.5), "quality": 0.5, "decay": 0.4}},
}  # fmt: skip


@pytest.fixture
def found(tmp_path: Path) -> tuple[Recipe, dict[str, Artifact]]:
    recipe = Recipe.model_validate({"name": "x", "model": {"base": "x"}, "stages": STAGES})
    artifacts = {}
    for name, file, told in (("play", "tournament.json", TOURNAMENT), ("ways", "overoptimisation.json", WAYS)):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(json.dumps(told), "utf-8")
        artifacts[name] = Artifact(name=name, kind="x", version=1, digest="0", path=str(tmp_path / name), key=name)
    return recipe, artifacts


def test_what_did_not_run_is_not_shown(found: tuple[Recipe, dict[str, Artifact]]) -> None:
    recipe, _ = found
    assert tournaments(recipe, {}) == overoptimisations(recipe, {}) == ()


def test_the_page_shows_the_ranking_and_the_ways(found: tuple[Recipe, dict[str, Artifact]], finished_run: Any) -> None:
    played, ways = tournaments(*found), overoptimisations(*found)
    report = finished_run.report().model_copy(update={"tournaments": played, "overoptimisations": ways})
    page = lxml.html.document_fromstring(render(report))
    text = " ".join(page.xpath("//*[@id='evidence']")[0].text_content().split())
    assert "ppo goes on: of the models it wins most often against sft" in text
    rows = [
        " ".join(" ".join(cell.text_content() for cell in row).split())
        for row in page.xpath("//*[@id='evidence']//tbody/tr")
    ]
    assert any(row.startswith("best_of_n a way of sampling 70 % (60–80 %)") for row in rows)
    assert any("≤ 1.2" in row for row in rows)
    assert any(row.startswith("sft the start –") for row in rows)
    assert any(row.startswith("ppo rose, then fell step 8 4 0.6 (0.5 to 0.7) −0.8 (−0.9 to −0.7)") for row in rows)
    labels = [svg.get("aria-label") for svg in page.xpath("//*[@id='evidence']//figure//svg")]
    assert any(
        "ppo: the true reward rose, then fell; its best is 0.6 deviations above the start" in one for one in labels
    )


def test_the_plane_holds_every_point_and_labels_keep_apart(found: tuple[Recipe, dict[str, Artifact]]) -> None:
    (ways,), (played,) = overoptimisations(*found), tournaments(*found)
    for figure in (distance_plots.way_plot(ways), distance_plots.tournament_plot(played)):
        dots = [shape for shape in figure.shapes if shape.tag == "circle"]
        assert len(dots) == 3
        assert all(0 < dot.x < figure.width and 0 < dot.y < figure.height for dot in dots)
        names = [shape.y for shape in figure.shapes if shape.tag == "text" and shape.css == "row-label"]
        gaps = [b - a for a, b in zip(sorted(names), sorted(names)[1:], strict=False)]
        assert all(gap >= 13.9 for gap in gaps)
