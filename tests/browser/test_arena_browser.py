"""Two people in the arena, in a real browser, on two tiny models: what is stored is what was said and clicked."""

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from preference_ui.arena.talks import Contestant, say, settle_turn, talk_in_hand, vote_on_talk
from preference_ui.store import schema

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]
SETUP = """
from pathlib import Path
from alignment.records import Sampling
from alignment.workspace import Workspace
from flows.services.arena_models import contestants
ring = contestants([{first!r}, {second!r}], Workspace(Path({root!r})), Sampling(max_new_tokens=24))
"""


@pytest.fixture(scope="module")
def app_setup(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the app's process does first: it loads two models whose words, at least, differ."""
    folder = tmp_path_factory.mktemp("arena")
    names = {name: str(make_model(folder / name, seed=at)) for at, name in enumerate(("first", "second"))}
    return SETUP.format(root=str(folder / "workspace"), **names)


def _talk(desk: Any, account: str) -> Any:
    with desk.store.read() as connection:
        mine = select(schema.talks).where(schema.talks.c.account_id == account).order_by(schema.talks.c.created)
        return connection.execute(mine).all()


def _votes(desk: Any, account: str) -> list[Any]:
    with desk.store.read() as connection:
        return list(connection.execute(select(schema.talk_votes).where(schema.talk_votes.c.account_id == account)))


def _answered(page: Any, turns: int) -> None:
    page.wait_for_function(f"document.querySelectorAll('.exchange').length === {turns}")
    page.wait_for_selector(".scale")


def test_two_versions_are_talked_to_by_keyboard_and_named_after_the_vote(desk: Any, shoot: Any, axe: Any) -> None:
    account, token = desk.account("talker")
    page = desk.page(token, path="/arena")
    page.wait_for_selector("text=Talk to two versions at once")
    shoot(page, "arena-begin")
    page.keyboard.type("What colour is the cat?")  # the message box has the focus
    page.keyboard.press("Enter")
    page.wait_for_function("[...document.querySelectorAll('.writing .rendered')].some((one) => one.textContent.length)")
    shoot(page, "arena-streaming")
    _answered(page, 1)
    page.keyboard.type("Who saw it today?")
    page.keyboard.press("Enter")
    _answered(page, 2)
    page.reload()  # nothing is lost, and nothing is told
    _answered(page, 2)
    (talk,) = _talk(desk, account)
    names = [name for name, _ in talk.versions]
    for name in names:
        assert Path(name).name in ("first", "second")
        assert name not in page.content()
    shown = page.locator(".exchange").nth(1).locator(".rendered").all_text_contents()
    assert shown[0].strip() == "Who saw it today?"
    assert [turn["said"] for turn in talk.turns] == ["What colour is the cat?", "Who saw it today?"]
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    page.wait_for_selector("dialog")
    shoot(page, "arena-keys")
    page.keyboard.press("Escape")
    page.keyboard.press("Enter")  # nothing chosen yet
    page.wait_for_selector("text=Say which answer is better first")
    page.keyboard.press("6")
    shoot(page, "arena-vote")
    assert axe(page) == []
    assert _votes(desk, account) == []
    page.keyboard.press("Enter")
    page.wait_for_selector(f"text=A is {names[0]}, B is {names[1]}")
    page.wait_for_selector("text=You said: B better")
    shoot(page, "arena-names")
    assert axe(page) == []
    (vote,) = _votes(desk, account)
    assert (vote.talk_id, vote.outcome, vote.strength) == (talk.id, "ranked", 2)
    page.keyboard.press("n")
    page.wait_for_selector("text=Talk to two versions at once")
    assert _talk(desk, account)[-1].id != talk.id
    assert page.problems == []


@pytest.mark.parametrize("dark", [False, True])
def test_by_touch_on_a_phone_both_are_bad(desk: Any, shoot: Any, axe: Any, dark: bool) -> None:
    account, token = desk.account(f"phone-{uuid.uuid4().hex[:4]}")
    page = desk.page(token, path="/arena", width=390, dark=dark)
    page.wait_for_selector("#message")
    page.fill("#message", "Name the fox in one word.")
    page.locator(".message button").tap()
    _answered(page, 1)
    shoot(page, f"arena-phone-{'dark' if dark else 'light'}")
    assert axe(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.locator("button:has-text('Both bad')").tap()
    page.wait_for_selector("text=Your vote is saved and stands")
    (vote,) = _votes(desk, account)
    assert (vote.outcome, vote.strength) == ("both_bad", None)


def test_a_talk_outlives_the_app(desk: Any) -> None:
    account, token = desk.account("patient")
    page = desk.page(token, path="/arena")
    page.wait_for_selector("#message")
    page.keyboard.type("What colour is the dog?")
    page.keyboard.press("Enter")
    page.wait_for_selector(".exchange")
    desk.stop()
    desk.restart()
    page.wait_for_selector(".scale", timeout=300_000)
    (talk,) = _talk(desk, account)
    assert all(isinstance(text, str) for text in talk.turns[0]["answers"])


def test_the_administrator_sees_who_is_liked_better_and_edits_criteria(desk: Any, shoot: Any, axe: Any) -> None:
    account, _ = desk.account("voter")
    pair = [Contestant(f"policy/{number}", f"digest-{number}", lambda *_: iter([])) for number in (1, 2)]
    for _ in range(6):  # version 2 is always liked better
        talk = talk_in_hand(desk.store, account, pair)
        say(desk.store, account, talk.id, "Hello")
        settle_turn(desk.store, talk.id, 0, ("one", "two"))
        better = -2 if talk.versions[0][0] == "policy/2" else 2
        vote_on_talk(desk.store, account, talk.id, {"outcome": "ranked", "strength": better})
    _, root = desk.account("root", "administrator")
    page = desk.page(root, path="/admin")
    page.wait_for_selector("h2:has-text('Arena')")
    cells = page.locator("tr", has=page.locator("th:has-text('policy/1')")).locator("td").all_text_contents()
    assert [cells[0], *cells[-4:]] == ["policy/2", "0", "6", "0", "0"]
    assert "0 %" in cells[1]
    page.fill("textarea[name=criteria]", "kind: 1: cold; 5: warm.\n\nshort: One line is enough.")
    page.locator("h2:has-text('Arena')").scroll_into_view_if_needed()
    shoot(page, "administrator-arena")
    page.click("text=Save settings")
    page.wait_for_selector("text=Saved. Raters read changed guidelines again.")
    criteria = [(one.name, one.rubric) for one in desk.store.settings()[1].criteria]
    assert criteria == [("kind", "1: cold; 5: warm."), ("short", "One line is enough.")]
    shown = '"kind: 1: cold; 5: warm.\\nshort: One line is enough."'  # as the server keeps it: the page is drawn anew
    page.wait_for_function(f"document.querySelector('textarea[name=criteria]').value === {shown}")
    page.fill("textarea[name=criteria]", "no rubric")
    page.click("text=Save settings")
    page.wait_for_selector("text=criteria.0")
    assert axe(page) == []
    assert page.problems == []
