"""What others wrote reads as it is wherever it is shown: nothing of it is markup, moves a cursor, or forges a line."""

import base64
import html
import io
import json
import logging
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from markdown_it import MarkdownIt
from prometheus_client.parser import text_string_to_metric_families

from alignment.errors import Fault
from alignment.plain_text import indented, markdown, markdown_code, markdown_lines, one_line, printable
from flows.console import PlainConsole, print_json, styled
from flows.monitoring.logs import AboutFormatter, PlainFormatter
from flows.monitoring.notifiers import News, _slack, notify
from flows.monitoring.prometheus import exposition, gauge
from flows.monitoring.terminal import Terminal
from preference_ui.quality.queue_stats import QueueStanding, standing_text
from tests.others_text import NASTY

# What a dashboard may read: CommonMark, GitHub's tables and deletions, bare addresses as links.
READER = MarkdownIt("commonmark", {"linkify": False}).enable(["table", "strikethrough"])
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
texts = pytest.mark.parametrize(("text", "shown"), NASTY)


def read(source: str, *, cells: bool = False) -> list[list[str]]:
    """The rendered text of each block (or table cell); fails where anything but text was read."""
    blocks = []
    for token in READER.parse(source):
        assert token.type not in ("fence", "code_block", "html_block", "hr", "blockquote_open", "list_item_open")
        if token.type == "inline":
            kinds = {child.type for child in token.children or []}
            assert kinds <= {"text", "text_special", "code_inline", "hardbreak"}, kinds
            blocks.append([child.content for child in token.children or [] if child.content])
    assert not cells or any(token.type == "td_open" for token in READER.parse(source))
    return blocks


@texts
def test_markdown_reads_as_the_text(text: str, shown: str) -> None:
    assert "".join(read(markdown(text))[0]) == shown
    head, cell, after = read(f"| a | b |\n|---|---|\n| {markdown(text)} | after |", cells=True)[1:]
    assert (head, "".join(cell), after) == (["b"], shown, ["after"])
    assert "".join(read(f"# {markdown(text)}")[0]) == shown
    assert not re.search(r"(?<!\\)(://|www\.|@[\w-]+\.)", markdown(text)), "no bare address for GitHub's readers"


@texts
def test_a_code_span_is_one(text: str, shown: str) -> None:
    ((span,),) = read(markdown_code(text))
    assert span == shown


def test_a_description_keeps_its_lines() -> None:
    source = markdown_lines("*One*\n# Two\n\n- Three\n    Four")
    assert ["".join(block) for block in read(source)] == ["*One*# Two", "- ThreeFour"]
    assert [token.type for token in READER.parse(source)].count("paragraph_open") == 2
    breaks = [child.type for token in READER.parse(source) for child in token.children or []]
    assert breaks.count("hardbreak") == 2


@texts
def test_the_terminal_shows_it(text: str, shown: str) -> None:
    out = io.StringIO()
    console = PlainConsole(file=out, force_terminal=False, width=200)
    terminal = Terminal({"dpo": "dpo"}, console)
    terminal.stage_started("dpo", "dpo")
    terminal.stage_finished("dpo", status="failed", cached=False, seconds=1.0, summary=text)
    terminal.warned(text)
    console.print(styled(text))
    first, *others = out.getvalue().split("\n")
    assert first.endswith(shown.rstrip())
    assert not CONTROL.search(out.getvalue())
    assert all(line.startswith("    ") or not line for line in others[1 : len(indented(text).split("\n"))])


@texts
def test_a_live_table_shows_it(text: str, shown: str) -> None:
    out = io.StringIO()
    console = PlainConsole(file=out, force_terminal=True, width=200, color_system=None)
    terminal = Terminal({"dpo": "dpo"}, console)
    terminal.stage_started("dpo", "dpo")
    terminal.stage_finished("dpo", status="failed", cached=False, seconds=1.0, summary=text)
    console.print(terminal._table())
    assert shown.rstrip() in out.getvalue()
    assert not CONTROL.search(out.getvalue())


@texts
def test_a_fault_is_one_line(text: str, shown: str) -> None:
    line = str(Fault(f"no stage {text}", "see", file=f"dir  two/{text}", field="x"))
    assert len(line.splitlines()) == 1
    assert printable(line).startswith(f"dir  two/{shown.replace('␍', '␤')}:x: "), "a path is not changed"


@texts
def test_logs(text: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    record = logging.LogRecord("flows.x", logging.WARNING, "x.py", 1, "said: %s", (text,), None)
    line = AboutFormatter().format(record)
    assert len(line.splitlines()) == 1
    assert not CONTROL.search(line)
    assert json.loads(line)["message"] == f"said: {text}"
    plain = PlainFormatter().format(record)
    assert not CONTROL.search(plain)
    assert all(line.startswith("    ") for line in plain.split("\n")[1:])
    assert len(plain.splitlines()) == len(plain.split("\n"))
    print_json(json.dumps({"text": text}, ensure_ascii=False))
    said = capsys.readouterr().out
    assert json.loads(said) == {"text": text}
    assert not CONTROL.search(said)


def test_warnings_that_nobody_writes_are_plain_too() -> None:
    """A process of its own: the handler of last resort is Python's, and pytest has taken the root logger."""
    import subprocess

    code = (
        "import logging; from flows.monitoring.logs import set_up; set_up();"
        "logging.getLogger('alignment.x').warning('a\\x1b[2Jb\\nrlhf: forged')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stderr == "a␛[2Jb\n    rlhf: forged\n"


@texts
def test_rlhf_logs(text: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    from flows.commands.runs import _print_event

    event = {"time": "2026-11-28T10:00:00Z", "level": "warning", "message": text, "error": f"Traceback\n{text}"}
    _print_event(PlainConsole(width=400), event)
    lines = capsys.readouterr().out.split("\n")
    assert lines[0].startswith("10:00:00 WARNING ")
    assert all(line.startswith("    ") for line in lines[1:-1])
    assert not CONTROL.search("\n".join(lines))
    assert printable(text).split("\n")[0].split("\u2028")[0].split("␋")[0][:4] in lines[0]


@texts
def test_prometheus_labels(text: str, shown: str) -> None:
    source = exposition([gauge("rlhf_stage_metric", [({"metric": text}, 1.5)], {"stage": "dpo"})])
    samples = [sample for family in text_string_to_metric_families(source) for sample in family.samples]
    assert [(one.labels, one.value) for one in samples] == [({"stage": "dpo", "metric": text}, 1.5)]


@texts
def test_queues_on_the_dashboard(text: str, shown: str) -> None:
    source = standing_text([QueueStanding(queue=text, comparisons=1, complete=0, votes=0, wanted=2, raters=0)])
    cells = read(source, cells=True)
    assert len(cells) == 14
    assert "".join(cells[7]) == shown


@texts
def test_slack_reads_nothing_out_of_it(text: str, shown: str) -> None:
    message = _slack(News("failed", "tiny", "tiny-1", text))
    assert message["mrkdwn"] is False
    assert "<" not in message["text"]
    assert html.unescape(message["text"]) == f"tiny-1: failed\n{printable(text.strip())}"  # &, <, > are all it escapes


@texts
def test_mail_and_webhooks(text: str, shown: str) -> None:
    assert len(News("failed", text, "", text).subject.splitlines()) == 1


class Discord:
    """What is sent to a service that speaks Markdown, without the network."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from apprise.plugins.discord import NotifyDiscord

        self.bodies: list[str] = []
        monkeypatch.setattr(NotifyDiscord, "send", lambda _self, body, **_: self.bodies.append(body) or True)


@pytest.mark.parametrize(("text", "shown"), NASTY[:9])
def test_apprise_escapes_for_services_of_markdown(text: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from alignment.recipe.deployment import Notify

    discord = Discord(monkeypatch)
    monkeypatch.setenv("SERVICES", "discord://4174216298/JHMHI8qBe7bk2ZwO5U711o3dV_js/?format=markdown")
    told = notify(Notify.model_validate({"apprise": "SERVICES"}), News("failed", "tiny", "tiny-1", text))
    assert told == {"apprise": True}
    assert "".join(read(discord.bodies[0])[0]) == shown


class Page(HTMLParser):
    """The elements and the text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


@texts
def test_pictures_of_figures(text: str, shown: str) -> None:
    from alignment.report.svg import SvgFigure
    from alignment.report.svg_export import figure_svg
    from flows.monitoring.dashboard import _image

    plain = Page()
    plain.feed(figure_svg(SvgFigure(title="x", alternative="y", width=10.0, height=10.0, shapes=())))
    figure = SvgFigure(title=text, alternative=text, width=10.0, height=10.0, shapes=())
    page = Page()
    page.feed(figure_svg(figure))
    assert page.tags == plain.tags
    assert printable(text).strip() in page.text
    ElementTree.fromstring(figure_svg(figure))  # it is XML
    reader = MarkdownIt("commonmark")
    reader.validateLink = lambda _url: True  # type: ignore[method-assign]  # it shows no pictures inside the text
    (paragraph,) = [token for token in reader.parse(_image(text, figure_svg(figure))) if token.type == "inline"]
    (picture,) = paragraph.children or []
    assert picture.type == "image"
    assert picture.content.replace("\\", "") == markdown(text).replace("\\", "")
    source = str(picture.attrs["src"]).removeprefix("data:image/svg+xml;base64,")
    assert base64.b64decode(source).decode() == figure_svg(figure)


def test_the_story_of_a_run_on_the_dashboard(tmp_path: Path) -> None:
    """A gate on a slice: its name holds the prompts' kind, which somebody wrote."""
    from datetime import UTC, datetime

    from alignment.evaluation.gate import GateCheck, GateVerdict
    from alignment.report import RunReport
    from flows.monitoring.dashboard import story

    checks = tuple(
        GateCheck(name=f"win_rate.base.{text}", value=0.1, bound="above", threshold=0.5, passed=False, by=-0.4)
        for text, _shown in NASTY
    )
    now = datetime.now(UTC)
    values: dict[str, Any] = {
        "run": "tiny-1", "recipe_name": "tiny", "recipe": "", "recipe_digest": "0", "commit": None, "started": now,
        "finished": now, "seconds": 1.0, "stages": (), "gate": GateVerdict(passed=False, checks=checks),
    }  # fmt: skip
    report = RunReport.model_construct(**{**dict.fromkeys(RunReport.model_fields), **values})
    object.__setattr__(report, "tournaments", ())
    for name in ("overoptimisations", "rewards", "judges", "training", "samples"):
        if name in RunReport.model_fields:
            object.__setattr__(report, name, ())
    found = read(story(report, tmp_path / "report.html"))
    rows = ["".join(block) for block in found]
    for text, shown in NASTY:
        said = f"win_rate.base.{shown} = 0.1, must be above 0.5: failed by 0.4"
        assert said in rows, (text, rows)


def test_one_line_is_one(make_recipe: Callable[..., Path]) -> None:
    for text, shown in NASTY:
        assert one_line(text) == shown
