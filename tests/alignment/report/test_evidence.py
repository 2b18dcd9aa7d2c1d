"""Metrics, slices, system and leaderboard on the page: what intervals allow to be said, and no more."""

from typing import Any, TypeAlias

import lxml.html
import pytest

from alignment.evaluation.leaderboard import Game, leaderboard
from alignment.report import evidence_words
from alignment.report.page import render
from alignment.report.run_report import FigureReport
from alignment.workspace import Workspace

Run: TypeAlias = Any  # the FinishedRun of conftest.py, which cannot be imported


@pytest.mark.parametrize(
    ("low", "value", "high", "better", "said"),
    [
        (0.1, 0.2, 0.3, "higher", "better"),
        (0.1, 0.2, 0.3, "lower", "worse"),
        (-0.3, -0.2, -0.1, "lower", "better"),
        (-0.3, -0.2, -0.1, None, "lower"),
        (-0.01, 0.2, 0.4, "higher", "no difference shows"),
        (0.0, 0.2, 0.4, "higher", "no difference shows"),
    ],
)
def test_no_difference_is_called_one_where_its_interval_holds_zero(
    low: float, value: float, high: float, better: str | None, said: str
) -> None:
    lead = FigureReport(value=value, low=low, high=high, n=10)
    assert evidence_words.lead_words(lead, better) == said
    assert (evidence_words.lead_class(lead, better) == "win") == (said == "better")
    assert evidence_words.lead_words(lead.model_copy(update={"n": 1}), better) == "no difference shows"


def test_the_page_says_better_only_where_the_interval_does(finished_run: Run) -> None:
    report = finished_run.report()
    page = lxml.html.document_fromstring(render(report))
    table = next(t for t in page.xpath("//*[@id='evidence']//table") if "difference" in t.text_content())
    rows = {row.xpath("th")[0].text_content().split("\n")[0].strip(): row for row in table.xpath("tbody/tr")}
    assert len(rows) == 8
    found = report.evaluation
    assert found is not None
    for name, lead in found.leads["base"].items():
        row = next(row for title, row in rows.items() if title.startswith(evidence_words.metric_words(name)))
        said = [cell.text_content().strip() for cell in row.xpath("td")]
        words = evidence_words.lead_words(lead, found.better[name])
        assert said[2].endswith(words)
        assert lead.open == ("no difference shows" in said[2])
    assert "nrefs:1|case:mixed" in page.text_content()


def test_every_slice_has_its_n_and_the_system_is_shown(finished_run: Run) -> None:
    report = finished_run.report()
    assert report.evaluation is not None
    text = " ".join(lxml.html.document_fromstring(render(report)).text_content().split())
    for part in report.evaluation.slices:
        assert part.value.replace("_", " ") in text
        assert sum(other.n for other in report.evaluation.slices if other.by == part.by) <= report.evaluation.prompts
    assert "Slices of the prompts" in text
    assert "Accuracy of reward by slice" in text
    assert "5a2f5a2f5a2f dpo, base, sft" in text
    assert "greedy, at most 64 tokens" in text
    assert "none (144 prompts)" in text
    assert "the bias of few pairs taken off" in text


def test_the_leaderboard_names_versions_and_who_beat_whom(finished_run: Run) -> None:
    board = finished_run.report().leaderboard
    assert board is not None
    dpo, base = "dpo@1:0123456789ab", "base@1:0123456789ab"
    counts = evidence_words.meeting_words(board, dpo, base).split(" – ")
    assert counts[::-1] == evidence_words.meeting_words(board, base, dpo).split(" – ")
    assert sum(map(int, counts)) == 2 * 144  # by two judges
    people = [Game(id=str(i), left=base, right="<b>x</b>", outcome=1.0, who="people") for i in range(4)]
    more = leaderboard(Workspace(finished_run.workspace.root), people, {dpo: ["policy/3"]})
    page = lxml.html.document_fromstring(render(finished_run.report(leaderboard=more)))
    section = page.xpath("//*[@id='leaderboard']")[0]
    text = " ".join(section.text_content().split())
    assert "policy/3 dpo@1" in text
    assert "4 verdicts are people’s" in text
    assert "<b>x</b>" in text
    assert "rating, people" in text
    assert "≈" in text  # who never won has no rating but an order of magnitude


def test_a_version_that_waits_says_so_and_is_not_called_refused(finished_run: Run) -> None:
    gate = finished_run.report().gate
    assert gate is not None
    waiting = finished_run.report(gate=gate.model_copy(update={"passed": False, "waits": True}))
    entry = waiting.registered.model_copy(update={"aliases": ("candidate",)})
    page = lxml.html.document_fromstring(render(waiting.model_copy(update={"registered": entry})))
    said = page.xpath("//*[@class='sentence']")[0].text_content()
    assert said.startswith("policy v3 holds every condition and waits for a person's approval: it wins")
    assert "waiting" in page.xpath("//body/header")[0].get("class")
