"""One answer that is rewritten, scored, or marked: by keyboard alone and by mouse, in every theme and width."""

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from alignment.records import Comparison
from preference_ui.import_export import Filter, export_votes, read_votes
from preference_ui.labelling.queue import queue_comparisons
from preference_ui.store import schema
from preference_ui.store.queue_settings import QueueSettings, change_queue
from preference_ui.store.settings import Criterion, SpanLabel

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]
Make = Callable[..., Comparison]
LABELS = (SpanLabel(name="wrong", rubric="What it says is not so."), SpanLabel(name="rude", rubric="Unkind."),
          SpanLabel(name="unclear", rubric="Nobody can follow."))  # fmt: skip
CRITERIA = (Criterion(name="helpful", rubric="Does what was asked. 1: misses the point; 3: partly; 5: all of it."),
            Criterion(name="warm", rubric="Kind to who asked. 1: cold; 5: warm."))  # fmt: skip
ASKED = {
    "rewrites": QueueSettings(single="rewrites"),
    "scores": QueueSettings(single="scores", criteria=CRITERIA),
    "spans": QueueSettings(single="spans", labels=LABELS),
}
ATTACK = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
LONG = (
    "The water boils earlier on a mountain, because the air presses on it less. Pasta takes longer there, so you had "
    "better wait some minutes more, or take a pot with a tight lid.\n\nAt sea it is the same everywhere."
)


@pytest.fixture
def ask(desk: Any, comparison: Make) -> Callable[..., str]:
    """Queues answers, of which nothing else is in any queue, as a queue of one kind asks of them; returns its name."""

    def queue(kind: str, *texts: str, question: str = "What is the capital of France?") -> str:
        name = f"{kind}-{uuid.uuid4().hex[:6]}"
        desk.only()
        change_queue(desk.store, name, ASKED[kind], author="test")
        items = [comparison(f"{name}-{at}", text, question=question) for at, text in enumerate(texts)]
        queue_comparisons(desk.store, items, votes_wanted=9, queue=name)
        return name

    return queue


def _sent(page: Any, done: int) -> None:
    page.wait_for_function(f"document.getElementById('progress-words')?.textContent.startsWith('{done} done')")


def _stored(desk: Any, account: str) -> list[Any]:
    query = select(schema.votes).where(schema.votes.c.account_id == account).order_by(schema.votes.c.created)
    with desk.store.read() as connection:
        return list(connection.execute(query).all())


def _looks_right(desk: Any, shoot: Any, axe: Any, name: str, ready: str, act: Callable[[Any], None]) -> None:
    """On a phone and on a screen, light and dark: no wider than it is, nothing for axe to find."""
    for width, dark in ((1280, False), (1280, True), (390, False), (390, True)):
        page = desk.page(desk.account("looker")[1], width=width, dark=dark)
        page.wait_for_selector(ready)
        act(page)
        shoot(page, f"rater-{name}-{width}-{'dark' if dark else 'light'}")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (width, dark)
        assert axe(page) == []
        assert page.problems == []
        page.context.close()


def test_an_answer_is_rewritten_by_keyboard_alone(
    desk: Any, ask: Callable[..., str], shoot: Any, axe: Any, tmp_path: Path
) -> None:
    queue = ask("rewrites", "It is Lyon.\r\nI think.", "It is Paris.")
    account, token = desk.account("writer")
    page = desk.page(token)
    for done in (1, 2):
        page.wait_for_selector("#rewrite")
        if page.locator("#rewrite").input_value() == "It is Paris.":
            page.keyboard.press("1")
            page.wait_for_selector("input[value=up]:checked")
            page.keyboard.press("Enter")
        else:
            page.keyboard.press("Enter")
            page.wait_for_selector("text=Change the answer first")
            page.keyboard.press("2")  # to the text field
            page.keyboard.press("ControlOrMeta+a")
            page.keyboard.type(f"It is Paris. {ATTACK} لا")
            page.wait_for_selector("text=Your version is sent as the better answer")
            page.reload()  # a draft
            page.wait_for_selector("#rewrite")
            assert page.locator("#rewrite").input_value() == f"It is Paris. {ATTACK} لا"
            page.keyboard.press("d")
            page.wait_for_selector(".changes mark")
            assert "Paris" in page.locator(".changes").inner_text()
            assert "Lyon" in "".join(page.locator(".answer mark").all_text_contents())  # what is gone
            assert axe(page) == []
            page.locator("#rewrite").focus()
            page.keyboard.press("Escape")
            page.keyboard.press("Enter")
        _sent(page, done)
    page.wait_for_selector(".done")
    assert page.title() != "owned"
    said = {row.outcome: row.correction for row in _stored(desk, account)}
    assert said["up"] is None
    assert said["edited"]["text"] == f"It is Paris. {ATTACK} لا"
    path = tmp_path / "rewrites.jsonl"
    export_votes(desk.store, path, what="rewrites", chosen=Filter(queue=queue))
    (row,) = map(json.loads, path.read_text().splitlines())
    assert row["chosen"][0]["content"] == f"It is Paris. {ATTACK} لا"
    assert row["rejected"][0]["content"] == "It is Lyon.\r\nI think."
    page.keyboard.press("h")
    page.wait_for_selector(".votes")
    assert sorted(page.locator(".votes .verdict").all_text_contents()) == ["Good", "Rewritten"]
    page.locator(".votes button", has_text="Rewritten").click()
    page.wait_for_selector("text=You said: Rewritten")
    assert page.locator("#rewrite").input_value().startswith("It is Paris.")
    assert page.problems == []


def test_an_answer_that_is_typed_back_is_not_a_better_one(desk: Any, ask: Callable[..., str]) -> None:
    ask("rewrites", "One.\r\nTwo.")
    account, token = desk.account("typer")
    page = desk.page(token)
    page.wait_for_selector("#rewrite")
    page.locator("#rewrite").press("End")
    page.keyboard.type("x")
    page.wait_for_selector("input[value=edited]:checked")
    page.keyboard.press("Backspace")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("text=Change the answer first")
    assert _stored(desk, account) == []
    page.click("label[for=rewrite-0]")  # by mouse
    page.click("button.send")
    _sent(page, 1)
    assert [row.outcome for row in _stored(desk, account)] == ["up"]


def test_rewriting_looks_right(desk: Any, ask: Callable[..., str], shoot: Any, axe: Any) -> None:
    ask("rewrites", LONG, question="Why does pasta take longer on a mountain?")

    def write(page: Any) -> None:
        page.locator("#rewrite").fill(LONG.replace("some minutes", "five minutes").replace("tight ", ""))
        page.locator(".own-tools button").first.click()
        page.wait_for_selector(".changes mark")

    _looks_right(desk, shoot, axe, "rewrite", "#rewrite", write)


def test_an_answer_is_scored_by_keyboard_and_by_mouse(desk: Any, ask: Callable[..., str], axe: Any) -> None:
    queue = ask("scores", "It is Paris.")
    first, token = desk.account("scorer")
    page = desk.page(token)
    page.wait_for_selector(".score-row")
    page.keyboard.press("4")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Give every score first")
    page.keyboard.press("2")
    page.wait_for_selector("text=Every score is given")
    page.keyboard.press("ArrowUp")  # back to the first
    page.keyboard.press("5")
    assert axe(page) == []
    page.keyboard.press("Enter")
    _sent(page, 1)
    second, token = desk.account("mouse")
    page = desk.page(token)
    page.wait_for_selector(".score-row")
    page.click("label[for=score-1-1]")
    page.click("label[for=score-0-3]")
    page.click("button.send")
    _sent(page, 1)
    answer = f"{queue}-0-a"
    assert _stored(desk, first)[0].criteria == {f"helpful:{answer}": 5, f"warm:{answer}": 2}
    assert _stored(desk, second)[0].criteria == {f"helpful:{answer}": 3, f"warm:{answer}": 1}
    (scored,) = read_votes(desk.store, Filter(queue=queue)).made("scores", 0)
    assert scored.scores == {"helpful": 4, "warm": 1.5}
    page.keyboard.press("h")
    page.wait_for_selector("text=Scored: helpful 3, warm 1")
    assert page.problems == []


def test_scoring_looks_right(desk: Any, ask: Callable[..., str], shoot: Any, axe: Any) -> None:
    ask("scores", LONG, question="Why does pasta take longer on a mountain?")
    _looks_right(desk, shoot, axe, "score", ".score-row", lambda page: page.keyboard.press("4"))


def test_parts_are_marked_by_keyboard_alone(desk: Any, ask: Callable[..., str], axe: Any, tmp_path: Path) -> None:
    text = f"😀 It is Lyon. {ATTACK}"
    queue = ask("spans", text)
    account, token = desk.account("marker")
    page = desk.page(token)
    page.wait_for_selector(".marking")
    page.keyboard.press("1")
    page.wait_for_selector("text=Select some words of the answer first")
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    page.wait_for_selector("text=“Lyon” is selected")
    page.keyboard.press("1")
    page.wait_for_selector(".marks q:has-text('Lyon')")
    page.keyboard.press("ArrowLeft")  # goes on from there
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Shift+ArrowLeft")
    page.wait_for_selector("text=“It is” is selected")
    page.keyboard.press("2")
    page.wait_for_selector(".marks li:nth-child(2)")
    assert axe(page) == []
    field = page.locator(".marks input").nth(1)
    field.fill(f"it is not {ATTACK}")
    page.reload()  # a draft
    page.wait_for_selector(".marks li:nth-child(2)")
    assert page.locator(".marks input").nth(1).input_value() == f"it is not {ATTACK}"
    page.locator(".marks input").nth(1).focus()
    page.keyboard.press("Escape")
    page.keyboard.press("Enter")
    _sent(page, 1)
    assert page.title() != "owned"
    (vote,) = _stored(desk, account)
    marks = [(one["label"], text[one["start"] : one["end"]], one["comment"]) for one in vote.spans]
    assert marks == [("rude", "It is", ""), ("wrong", "Lyon", f"it is not {ATTACK}")]
    path = tmp_path / "spans.jsonl"
    export_votes(desk.store, path, what="spans", chosen=Filter(queue=queue))
    assert [one["text"] for one in json.loads(path.read_text())["spans"]] == ["It is", "Lyon"]
    page.keyboard.press("h")
    page.wait_for_selector("text=2 marked")
    _account, boss = desk.account("boss", role="administrator")
    review = desk.page(boss, path="/review")
    review.wait_for_selector("#record")
    review.locator("#record textarea, #record input").first.fill(f"{queue}-0")
    review.get_by_role("button", name="Open", exact=True).click()
    review.wait_for_selector("#votes >> text=it is not >> visible=true")
    assert review.title() == "Review"
    assert page.problems == review.problems == []


def test_parts_are_marked_by_mouse_and_marks_can_be_removed(desk: Any, ask: Callable[..., str]) -> None:
    ask("spans", "It is Lyon, I think.", "Paris.")
    account, token = desk.account("dragger")
    page = desk.page(token)
    for done in (1, 2):
        page.wait_for_selector(".marking")
        text = page.locator(".marking")
        if text.inner_text() == "Paris.":
            page.click("button.send")  # nothing to mark has to be said
            page.wait_for_selector("text=Is there nothing to mark?")
            page.keyboard.press("Enter")
        else:
            box = text.evaluate("""(one) => {
              const range = document.createRange();
              range.setStart(one.firstChild, 6);
              range.setEnd(one.firstChild, 10);
              const { left, right, top, bottom } = range.getBoundingClientRect();
              return { left, right, y: (top + bottom) / 2, x: one.getBoundingClientRect().left };
            }""")
            page.mouse.move(box["left"] + 1, box["y"])
            page.mouse.down()
            page.mouse.move(box["right"] - 1, box["y"], steps=4)
            page.mouse.up()
            page.wait_for_selector("text=“Lyon” is selected")
            text.click(position={"x": 8, "y": 12})  # a click lets go
            page.wait_for_selector("text=Select words with the mouse")
            text.dblclick(position={"x": box["left"] - box["x"] + 8, "y": 12})
            page.wait_for_selector("text=“Lyon” is selected")
            page.click(".label:has-text('wrong')")
            page.wait_for_selector(".marks q:has-text('Lyon')")
            text.dblclick(position={"x": 8, "y": 12})  # a word
            page.wait_for_selector("text=“It” is selected")
            page.click(".label:has-text('unclear')")
            page.wait_for_selector(".marks li:nth-child(2)")
            page.click(".marks li:nth-child(1) button")
            page.wait_for_selector(".marks li:nth-child(2)", state="detached")
            page.click("button.send")
        _sent(page, done)
    marks = {tuple((one["label"], one["start"], one["end"]) for one in row.spans) for row in _stored(desk, account)}
    assert marks == {(("wrong", 6, 10),), ()}
    assert page.problems == []


def test_arabic_is_marked_from_right_to_left(desk: Any, ask: Callable[..., str], shoot: Any) -> None:
    text = "عاصمة فرنسا هي ليون"
    ask("spans", text)
    account, token = desk.account("arabic")
    page = desk.page(token)
    page.wait_for_selector(".marking")
    assert page.locator(".marking").evaluate("(one) => getComputedStyle(one).direction") == "rtl"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("1")
    page.wait_for_selector(".marks q")
    shoot(page, "rater-spans-arabic")
    page.keyboard.press("Enter")
    _sent(page, 1)
    ((mark,),) = [row.spans for row in _stored(desk, account)]
    assert text[mark["start"] : mark["end"]] == "فرنسا"


def test_marking_looks_right(desk: Any, ask: Callable[..., str], shoot: Any, axe: Any) -> None:
    ask("spans", LONG, question="Why does pasta take longer on a mountain?")

    def mark(page: Any) -> None:
        for key in ("ArrowRight", "Shift+ArrowRight", "Shift+ArrowRight", "1", "ArrowRight", "ArrowRight", "2"):
            page.keyboard.press(key)
        page.wait_for_selector(".marks li:nth-child(2)")
        page.keyboard.press("ArrowLeft")

    _looks_right(desk, shoot, axe, "spans", ".marking", mark)
