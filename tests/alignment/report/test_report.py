"""report.json's contract, and report.html: valid, self-contained, escaped, honest about what is missing."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias
from xml.etree import ElementTree

import lxml.html
import pytest

from alignment.recipe.recipe import Recipe
from alignment.records import Message, Prompt
from alignment.report import RunReport, words, write_report
from alignment.report.page import render

EVIL = '</script><script>alert(1)</script><img src="http://evil.example/x" onerror="alert(2)">'
Run: TypeAlias = Any  # the FinishedRun of conftest.py, which cannot be imported


@pytest.fixture
def page(finished_run: Run) -> lxml.html.HtmlElement:
    return lxml.html.document_fromstring(render(finished_run.report()))


def find(element: lxml.html.HtmlElement, selector: str) -> list[lxml.html.HtmlElement]:
    """Elements by ``tag``, ``.class`` or ``#id``, one inside the other where a space stands between."""
    path = "."
    for part in selector.split():
        path += "//"
        if part.startswith("."):
            path += f"*[contains(concat(' ', @class, ' '), ' {part[1:]} ')]"
        else:
            path += f"*[@id='{part[1:]}']" if part.startswith("#") else part
    return list(element.xpath(path))


def text_of(page: lxml.html.HtmlElement, selector: str) -> str:
    return " ".join(" ".join(node.itertext()) for node in find(page, selector)).replace("\u202f", " ")


def test_the_json_keeps_its_contract(finished_run: Run, tmp_path: Path) -> None:
    write_report(finished_run.report(), tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text("utf-8"))
    keys = {"run", "recipe_digest", "commit", "started", "finished", "seconds", "stages", "gate", "cost"}
    assert keys <= report.keys()
    stage = report["stages"][1]
    assert {
        "name",
        "kind",
        "status",
        "cached",
        "seconds",
        "work_seconds",
        "inputs",
        "outputs",
        "metrics",
    } <= stage.keys()
    assert {"name", "kind", "version", "digest"} <= stage["outputs"][0].keys()
    assert {"passed", "checks"} <= report["gate"].keys()
    assert {"name", "value", "threshold", "passed"} <= report["gate"]["checks"][0].keys()
    assert set(report["cost"]) == {"cpu_seconds", "gpu_seconds", "tokens_trained", "tokens_sampled"}
    assert RunReport.model_validate(report).run == "quickstart-1"
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["report.html", "report.json"]


def test_the_cost_is_of_the_stages_that_ran(finished_run: Run) -> None:
    finished_run.outcomes = [dataclasses.replace(o, cached=o.name == "sft") for o in finished_run.outcomes]
    report = finished_run.report()
    trained = {name: artifact.tokens_trained for name, artifact in finished_run.artifacts.items()}
    assert report.cost.tokens_trained == trained["reward"] + trained["dpo"]
    assert report.cost_with_cached.tokens_trained == sum(trained.values())
    sft = next(stage for stage in report.stages if stage.name == "sft")
    assert (sft.cached, sft.work_seconds) == (True, 0.0)


def test_the_page_is_well_formed_and_asks_for_nothing_from_outside(finished_run: Run) -> None:
    text = render(finished_run.report())
    assert text.startswith("<!doctype html>")
    body = re.sub(r"<!doctype html>", "", re.sub(r"<(meta|link)([^>]*[^/])>", r"<\1\2/>", text))
    entities = body.replace("&#8239;", " ").replace(" hidden>", ' hidden="">')
    ElementTree.fromstring(re.sub(r"<(style|script)>.*?</\1>", "", entities, flags=re.DOTALL))
    page = lxml.html.document_fromstring(text)
    outside = [value for _el, _attribute, value, _at in page.iterlinks() if not value.startswith(("#", "data:"))]
    assert outside == []
    assert not re.search(r"https?://|@import|url\(", text)
    assert page.xpath("//meta[@http-equiv]/@content")[0].startswith("default-src 'none'")


def test_every_figure_has_a_title_axes_and_words(page: lxml.html.HtmlElement) -> None:
    figures = find(page, "figure")
    assert len(figures) == 8
    for figure in figures:
        assert find(figure, "h3")[0].text_content()
        svg = find(figure, "svg")[0]
        assert len(svg.get("aria-label")) > 30
        assert find(svg, ".axis-label")
    assert all(svg.get("aria-label") or svg.get("aria-hidden") for svg in find(page, "svg"))


def test_anchors_lead_somewhere(page: lxml.html.HtmlElement) -> None:
    ids = {element.get("id") for element in page.xpath("//*[@id]")}
    links = [a.get("href") for a in find(page, "nav a")]
    assert links
    assert {href.removeprefix("#") for href in links} <= ids


def test_what_users_and_models_wrote_is_escaped(make_run: Callable[..., Run]) -> None:
    prompts = [
        Prompt(id=f"p{i}", messages=(Message(role="user", content=EVIL),), kind="<b>kind</b>", reference=EVIL)
        for i in range(4)
    ]
    run = make_run(prompts=prompts)
    run.outcomes[2] = dataclasses.replace(run.outcomes[2], status="failed", error=EVIL)
    report = run.report(description=EVIL, recipe=EVIL)
    page = lxml.html.document_fromstring(render(report))
    assert len(find(page, "script")) == 1
    assert page.xpath("//img | //b") == []
    assert EVIL in find(page, ".sample .prompt")[0].text_content()
    assert EVIL in find(page, "details pre")[0].text_content()


def test_a_promotion_is_said_in_a_sentence(page: lxml.html.HtmlElement, finished_run: Run) -> None:
    rate = finished_run.artifacts["evaluation"].metrics["win_rate.base.rubric.value"]
    said = text_of(page, ".sentence")
    assert said.startswith(f"policy v3 promoted to champion: it wins {100 * rate:.0f} % of 144 held-out prompts")
    assert "3 simulated raters" in text_of(page, ".judge")
    assert "No person took part." in text_of(page, ".raters")


def test_a_refusal_says_what_failed_by_how_much(finished_run: Run) -> None:
    page = lxml.html.document_fromstring(render(finished_run.report(refused=True)))
    said = text_of(page, ".sentence")
    assert said == "policy v3 refused: win_rate.base.rubric.low was 0.46, wanted above 0.5 (short by 0.04)."
    assert "missed by 0.04" in text_of(page, "#gate")


def test_a_failed_run_says_where_and_what_was_not_reached(finished_run: Run) -> None:
    finished_run.fail_at("reward", "FloatingPointError: the loss is nan")
    page = lxml.html.document_fromstring(render(finished_run.report()))
    assert text_of(page, ".sentence") == "Stage reward failed, so nothing was decided."
    assert "the loss is nan" in text_of(page, ".error")
    absent = text_of(page, ".absent")
    for part in ("Evaluation", "Gate", "Reward model"):
        assert f"{part}: not reached in this run." in absent


def test_parts_that_a_recipe_lacks_are_said_to_be_no_part_of_it(finished_run: Run) -> None:
    whole = finished_run.recipe.model_dump(mode="json")
    only = {"sft": whole["stages"]["sft"]}
    finished_run.recipe = Recipe.model_validate(whole | {"stages": only, "gate": None})
    finished_run.outcomes = finished_run.outcomes[:2]
    finished_run.artifacts = {name: finished_run.artifacts[name] for name in ("base", "sft")}
    page = lxml.html.document_fromstring(render(finished_run.report()))
    assert text_of(page, ".sentence") == "The run finished; no gate decided."
    absent = text_of(page, ".absent")
    for part in ("Evaluation", "Preferences", "Reward model", "Gate"):
        assert f"{part}: not part of this recipe." in absent


def test_a_run_without_any_stage_still_has_a_report(finished_run: Run) -> None:
    finished_run.fail_at("base", "StageError: no model")
    assert "Stage base failed" in render(finished_run.report())


def test_samples_follow_the_rule_and_hold_losses(finished_run: Run) -> None:
    report = finished_run.report()
    assert report.samples == finished_run.report().samples
    assert 8 <= len(report.samples) <= 12
    kinds = {kind for kind, _tally in (report.evaluation.by_kind if report.evaluation else {}).items()}
    assert {sample.kind for sample in report.samples} == kinds
    lost = [s for s in report.samples if s.judgements[0].outcome == "loss"]
    first = report.samples[0].judgements[0]
    assert (first.opponent, first.judge) == ("base", "rubric")
    assert len(lost) >= 3
    assert [answer.model for answer in report.samples[0].answers] == ["base", "sft", "dpo"]
    assert f"{len(report.samples)} of 144 held-out prompts" in report.samples_chosen


def test_an_episodes_turns_stand_in_the_report_as_they_were_said(finished_run: Run) -> None:
    """What a stage writes of an episode is read from its samples and shown: calls, observations, rewards, escaped."""
    folder = Path(finished_run.artifacts["evaluation"].path)
    path = folder / "samples.jsonl"
    call = '<tool_call>{"name": "calculator", "arguments": {"expression": "347 * 86"}}</tool_call>'
    turns = [
        {"role": "assistant", "content": call, "reward": 0.0},
        {"role": "tool", "content": "29842 <b>", "reward": None},
        {"role": "assistant", "content": "It is 29842.", "reward": 1.0},
    ]
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    for row in rows:
        row["turns"] = dict.fromkeys(row["texts"], turns)
        row["scores"] = {model: {"environment": 1.0, "short": 0.25} for model in row["texts"]}
        row["outcomes"] = {}  # nobody judged them, so none of them has won, tied or lost
    before = path.read_text("utf-8")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    try:
        report = finished_run.report()
        page = render(report)
    finally:
        path.write_text(before, "utf-8")  # the files are shared
    answer = report.samples[0].answers[0]
    assert [turn.content for turn in answer.turns] == [turn["content"] for turn in turns]
    assert page.count(
        '<li class="turn tool"><span class="kind">tool</span> <span class="said">29842 &lt;b&gt;</span>'
    ) == (3 * len(report.samples))
    assert "&lt;tool_call&gt;{&#34;name&#34;: &#34;calculator&#34;" in page
    assert 'It is 29842.</span> <span class="note">reward 1' in page
    assert "environment 1, short 0.25" in page
    assert '<span class="result' not in page


def test_the_data_says_where_the_held_out_prompts_are(finished_run: Run) -> None:
    assert ("144", "prompts held out in held_out.jsonl") in words.data_facts(finished_run.report())
    data = finished_run.recipe.data.model_copy(update={"held_out_prompts": None})
    finished_run.recipe = finished_run.recipe.model_copy(update={"data": data})
    assert words.data_facts(finished_run.report())[-1] == ("144", "prompts held out")


def test_tallies_add_up_to_the_win_rate(finished_run: Run) -> None:
    found = finished_run.report().evaluation
    assert found is not None
    wins = sum(tally.win + tally.tie / 2 for tally in found.by_kind.values())
    total = sum(tally.win + tally.tie + tally.loss for tally in found.by_kind.values())
    assert total == found.prompts == 144
    assert wins / total == pytest.approx(found.win_rates[0].value)


def test_the_lineage_names_each_artifact_and_what_it_was_for(finished_run: Run) -> None:
    lineage = finished_run.report().lineage
    assert lineage is not None
    roles = {(edge.source, edge.target): edge.role for edge in lineage.edges}
    assert roles["sft@1", "dpo@1"] == "model"
    assert roles["preferences@1", "dpo@1"] == "preferences"
    assert roles["base@1", "dpo@1"] == ""  # only what its adapter applies to
    assert roles["base@1", "evaluation@1"] == "reference, against"
    assert {node.name: node.label for node in lineage.nodes}["dpo"] == "policy v3"


def test_alarms_of_a_training_stage_are_in_the_page_and_the_json(finished_run: Run, tmp_path: Path) -> None:
    outcome = next(outcome for outcome in finished_run.outcomes if outcome.name == "dpo")
    alarm = f"step 9: kl_runaway: 61.0 nats per answer {EVIL}"
    (Path(outcome.artifact.path) / "alarms.json").write_text(json.dumps([alarm]), "utf-8")
    write_report(finished_run.report(), tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text("utf-8"))
    assert {stage["name"]: stage["alarms"] for stage in report["stages"] if stage["alarms"]} == {"dpo": [alarm]}
    page = lxml.html.document_fromstring((tmp_path / "run" / "report.html").read_text("utf-8"))
    assert alarm.replace("\u202f", " ") in text_of(page, "#stages .error")


def test_rows_that_a_stage_left_out_are_on_the_page(finished_run: Run) -> None:
    report = finished_run.report()
    counts = {"pairs": 60.0, "cut_chosen": 12.0, "cut_rejected": 35.0, "duplicates": 0.0}
    stages = tuple(
        stage.model_copy(update={"metrics": counts}) if stage.name == "dpo" else stage for stage in report.stages
    )
    page = lxml.html.document_fromstring(render(report.model_copy(update={"stages": stages})))
    said = "of its rows 12 prefer an answer that was cut off and are left out, 35 reject an answer that was cut off"
    assert said in text_of(page, "#stages")
    assert "duplicates" not in text_of(page, "#stages")


def test_ppo_shows_score_kl_and_win_rate_but_not_every_figure(finished_run: Run) -> None:
    report = finished_run.report()
    curves = dict.fromkeys(("score", "kl", "held_out_win_rate", "entropy"), ((1, 0.5), (2, 1.5), (3, 2.5)))
    stages = tuple(
        stage.model_copy(update={"kind": "ppo", "metrics": {"score": 2.0}}) if stage.name == "dpo" else stage
        for stage in report.stages
    )
    changed = report.model_copy(update={"stages": stages, "curves": {"dpo": curves}})
    page = lxml.html.document_fromstring(render(changed))
    words = " ".join(page.itertext())
    for title in ("Score of dpo", "KL from the start of dpo", "Held-out win rate against the start of dpo"):
        assert title in words
    assert "ntropy of dpo" not in words
    assert "score 2.000" in text_of(page, "#stages")
