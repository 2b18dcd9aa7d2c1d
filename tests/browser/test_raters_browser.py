"""People at work, in a real browser: what is stored is compared with what was clicked."""

import re
import time
import uuid
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from alignment.records import Comparison
from preference_ui.accounts import accounts
from preference_ui.labelling.assignment import next_lease
from preference_ui.store import schema
from preference_ui.store.store import now

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]
Make = Callable[..., Comparison]
PASSWORD = "three calm green rivers"


def _name() -> str:
    return f"c{uuid.uuid4().hex[:8]}"


def _letter_of(page: Any, text: str) -> str:
    """The letter that the answer with this text has on the screen."""
    return str(page.locator(".answer", has_text=text).get_attribute("aria-label")).split()[-1]


def _progress(count: int) -> str:
    return f"document.getElementById('progress-words')?.textContent.startsWith('{count} done')"


def _sent(page: Any, count: int) -> None:
    page.wait_for_function(_progress(count))


def _until(holds: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)


def _draft(desk: Any, account: str) -> Any:
    """What the server keeps of a rater's unfinished vote."""
    mine = select(schema.drafts.c.body).join_from(schema.drafts, schema.leases)
    with desk.store.read() as connection:
        return connection.execute(mine.where(schema.leases.c.account_id == account)).scalar()


def _pairs(make: Make, names: list[str]) -> list[Comparison]:
    return [
        make(name, f"{name} says Paris.", f"{name} says Lyon.", question=f"{name}: the capital of France?")
        for name in names
    ]


def test_two_raters_at_once_by_keyboard_and_by_mouse(desk: Any, comparison: Make, shoot: Any) -> None:
    """From the invitation to the last vote; both want the first answer (Paris), in their own ways."""
    names = [_name(), _name()]
    ranked = comparison(_name(), "rivers alpha", "rivers beta", "rivers gamma", question="Name a river.")
    desk.only(*_pairs(comparison, names), ranked)
    tokens = [accounts.invite(desk.store, "rater", created_by="test") for _ in range(2)]
    keyboard, mouse = (desk.page(path=f"/invite/{token}") for token in tokens)
    shoot(keyboard, "invitation")

    keyboard.keyboard.type("keyboard.rater")  # the first field has the focus
    keyboard.keyboard.press("Tab")
    keyboard.keyboard.type(PASSWORD)
    keyboard.keyboard.press("Enter")
    mouse.fill("#name", "mouse.rater")
    mouse.fill("#password", PASSWORD)
    mouse.click("button[type=submit]")
    for page in (keyboard, mouse):
        page.wait_for_selector("text=I have read this")
    shoot(keyboard, "guidelines")
    keyboard.keyboard.press("Tab")
    while keyboard.evaluate("document.activeElement.textContent") != "I have read this":
        keyboard.keyboard.press("Tab")
    keyboard.keyboard.press("Enter")
    mouse.click("text=I have read this")
    for page in (keyboard, mouse):
        page.wait_for_selector("text=A trial to get to know the page")
    shoot(keyboard, "trial")
    keyboard.keyboard.press("4")
    keyboard.keyboard.press("Enter")
    keyboard.wait_for_selector("text=We see it differently")
    shoot(keyboard, "trial-feedback")
    keyboard.keyboard.press("Enter")
    right = _letter_of(mouse, "lower temperature")
    mouse.click(f".step label:has-text('{right} better')")
    mouse.click("button.send")
    mouse.wait_for_selector("text=We agree")
    mouse.click("text=Start working")

    for done in range(3):
        for page in (keyboard, mouse):
            page.wait_for_selector(".banner", state="detached")
            page.wait_for_selector(".answer")
        if keyboard.locator(".scale").count():
            first = _letter_of(keyboard, "Paris") == "A"
            keyboard.keyboard.press("1" if first else "7")
            keyboard.keyboard.press("Enter")
        else:
            for wanted, text in enumerate(("gamma", "alpha", "beta")):
                keyboard.locator(".rank-item", has_text=text).focus()
                keyboard.keyboard.press(str(wanted + 1))
            keyboard.locator(".rank-item", has_text="beta").focus()
            keyboard.keyboard.press("t")
            shoot(keyboard, "ranking")
            keyboard.keyboard.press("Enter")
            if keyboard.locator("dialog").count():
                keyboard.keyboard.press("Enter")
        if mouse.locator(".scale").count():
            mouse.click(f".step label:has-text('{_letter_of(mouse, 'Paris')} slightly better')")
            shoot(mouse, "pair")
            mouse.click("button.send")
        else:
            _drag_into_order(mouse, ["beta", "gamma", "alpha"])
            mouse.click("button.send")
            mouse.wait_for_function(f"document.querySelector('dialog') || {_progress(done + 1)}")
            if mouse.locator("dialog").count():  # one time in six the order was right from the start
                mouse.click("text=Yes, send it")
        for page in (keyboard, mouse):
            _sent(page, done + 1)
    keyboard.wait_for_selector("text=All done for now")
    shoot(keyboard, "all-done")
    assert keyboard.problems == mouse.problems == []

    ids = {row["name"]: row["id"] for row in accounts.people(desk.store)}
    by_keyboard = {vote.comparison_id: vote for vote in desk.votes(ids["keyboard.rater"])}
    by_mouse = {vote.comparison_id: vote for vote in desk.votes(ids["mouse.rater"])}
    for name in names:
        best_first = ((f"{name}-a",), (f"{name}-b",))
        assert (by_keyboard[name].ranking, by_keyboard[name].strength) == (best_first, 3)
        assert (by_mouse[name].ranking, by_mouse[name].strength) == (best_first, 1)
    alpha, beta, gamma = (response.id for response in ranked.responses)
    assert by_keyboard[ranked.id].ranking == ((gamma,), (alpha, beta))
    assert by_mouse[ranked.id].ranking == ((beta,), (gamma,), (alpha,))


def _drag_into_order(page: Any, texts: list[str]) -> None:
    for place, text in enumerate(texts):
        grip = page.locator(".rank-item", has_text=text).locator(".handle")
        grip.evaluate("element => element.scrollIntoView({block: 'center'})")  # not under the bar
        handle = grip.bounding_box()
        target = page.locator(".rank-item").nth(place).bounding_box()
        page.mouse.move(handle["x"] + 8, handle["y"] + 10)
        page.mouse.down()
        page.mouse.move(handle["x"] + 8, target["y"] + 2, steps=8)
        page.mouse.up()
        page.wait_for_selector(".dragging", state="detached")  # it is let go of, wherever the pointer was
    shown = page.locator(".rank-item .rendered").all_text_contents()
    assert [text.split()[-1] for text in shown] == texts


def test_a_reload_in_the_middle_loses_nothing(desk: Any, comparison: Make, shoot: Any) -> None:
    name = _name()
    desk.only(*_pairs(comparison, [name]))
    account, token = desk.account("reload")
    page = desk.page(token)
    page.wait_for_selector(".scale")
    at = _letter_of(page, "Lyon")
    page.keyboard.press("6")
    page.click("summary:has-text('Scores')")
    page.click("label[for='helpful-1-4']")
    page.keyboard.press("c")
    page.keyboard.type("half a thought")
    page.locator(".answer", has_text="Lyon").locator("text=Write a better one").click()
    page.keyboard.press("Control+A")
    page.keyboard.type("It is Paris.")
    _until(lambda: "It is Paris." in str(_draft(desk, account)))
    shoot(page, "scores-comment-correction")
    page.evaluate("sessionStorage.clear()")  # another browser would have only what the server kept
    page.reload()
    page.wait_for_selector(".scale")
    assert page.locator("input[name=strength]:checked").get_attribute("value") == "2"
    assert page.input_value("#comment") == "half a thought"
    assert page.locator("textarea[aria-label^='A better answer']:visible").input_value() == "It is Paris."
    assert _letter_of(page, "Lyon") == at  # the same order on the screen
    page.keyboard.press("Enter")
    _sent(page, 1)
    (vote,) = desk.votes(account)
    shown = [f"{name}-b", f"{name}-a"] if at == "A" else [f"{name}-a", f"{name}-b"]
    assert (vote.ranking, vote.strength, vote.comment) == (((shown[1],), (shown[0],)), 2, "half a thought")
    assert vote.criteria == {f"helpful:{shown[1]}": 4}
    with desk.store.read() as connection:
        correction = connection.execute(select(schema.votes.c.correction).where(schema.votes.c.id == vote.id)).scalar()
    assert correction == {"response": f"{name}-b", "text": "It is Paris."}


def test_undo_shows_the_vote_again_and_supersedes_it(desk: Any, comparison: Make, shoot: Any) -> None:
    names = [_name(), _name()]
    desk.only(*_pairs(comparison, names))
    account, token = desk.account("undo")
    page = desk.page(token)
    page.wait_for_selector(".scale")
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    _sent(page, 1)
    page.keyboard.press("u")
    page.wait_for_selector("text=You are changing a vote of yours")
    assert page.locator("input[name=strength]:checked").get_attribute("value") == "-3"
    shoot(page, "undo")
    page.keyboard.press("4")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=You are changing a vote of yours", state="detached")
    first, second = desk.votes(account)
    assert (first.strength, second.strength, second.supersedes) == (3, 0, first.id)
    assert first.comparison_id == second.comparison_id
    page.keyboard.press("s")  # and the next one is skipped, with a reason
    page.wait_for_selector("dialog")
    shoot(page, "skip")
    page.keyboard.press("2")
    page.wait_for_selector("text=All done for now")
    assert desk.votes(account)[-1].outcome == "skipped"
    assert desk.votes(account)[-1].comment == "language"


def test_an_expired_lease_is_explained_and_work_goes_on(desk: Any, comparison: Make, shoot: Any) -> None:
    lost, other = _name(), _name()
    desk.only(*_pairs(comparison, [lost]), votes_wanted=1)
    account, token = desk.account("late")
    page = desk.page(token)
    page.wait_for_selector(".scale")
    with desk.store.write() as connection:
        mine = schema.leases.c.account_id == account
        connection.execute(update(schema.leases).where(mine).values(expires=now() - timedelta(seconds=1)))
    quick, _ = desk.account("quick")
    assert next_lease(desk.store, quick) is not None
    desk.only(*_pairs(comparison, [other]))
    page.keyboard.press("7")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=You were away for a while")
    page.wait_for_selector(f"text={other}: the capital")
    shoot(page, "expired")
    assert desk.votes(account) == []


def test_a_vote_is_kept_until_the_app_is_back(desk: Any, comparison: Make, shoot: Any) -> None:
    desk.only(*_pairs(comparison, [_name()]))
    account, token = desk.account("patient")
    page = desk.page(token)
    page.wait_for_selector(".scale")
    desk.stop()
    page.keyboard.press("2")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Your vote is not saved yet")
    shoot(page, "not-saved-yet")
    assert desk.votes(account) == []
    desk.restart()
    page.wait_for_selector("text=All done for now", timeout=300_000)
    (vote,) = desk.votes(account)
    assert vote.strength == 2


def test_an_attack_in_a_text_does_not_run(desk: Any, comparison: Make) -> None:
    attack = "<img src=x onerror='window.pwned=1'><script>window.pwned=1</script>[x](javascript:window.pwned=1)"
    desk.only(comparison(_name(), attack, f"`{attack}` $\\text{{{attack}}}$", question=attack))
    _, token = desk.account("brave")
    page = desk.page(token)
    page.wait_for_selector(".scale")
    page.wait_for_timeout(500)
    assert page.evaluate("window.pwned") is None
    assert page.locator("main img, main script, main a").count() == 0
    page.locator("text=Write a better one").first.click()
    assert "<script>" in page.locator("textarea:visible").first.input_value()  # as text it is there, unharmed


RICH = (
    "Use `sorted`:\n\n```python\ndef f(xs: list[int]) -> list[int]:\n    return sorted(xs)  # a copy\n```\n\n"
    "It takes $O(n \\log n)$ steps: $$T(n) = 2\\,T\\!\\left(\\frac{n}{2}\\right) + n$$",
    "I'm ChatGPT. Call **`xs.sort()`**:\n\n1. it sorts in place,\n2. it returns `None`.\n\n| call | copy |\n|---|---|\n"
    "| `sorted(xs)` | yes |\n| `xs.sort()` | no |",
)


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False), (390, True)])
def test_every_view_is_accessible_and_fits(
    desk: Any, comparison: Make, shoot: Any, axe: Any, width: int, dark: bool
) -> None:
    kind = f"{'phone' if width < 600 else 'desktop'}-{'dark' if dark else 'light'}"
    pair = comparison(_name(), *RICH, question="How do I sort a list of numbers in Python?")
    ranked = comparison(
        _name(), "Danube, Rhine, Loire.", "Sure! Europe has many.", "The Nile.", question="Three rivers?"
    )
    problems = []

    def check(page: Any, view: str) -> None:
        shoot(page, f"{kind}-{view}")
        problems.extend(f"{view}: {one}" for one in axe(page))
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{view} is wider than the screen"

    check(desk.page(path="/login", width=width, dark=dark), "login")
    _, token = desk.account("viewer", guidelines_read=0)
    desk.only(pair)
    page = desk.page(token, width=width, dark=dark)
    page.wait_for_selector("text=I have read this")
    check(page, "guidelines")
    page.click("text=I have read this")
    page.wait_for_selector(".scale")
    assert page.locator("math").count() == 2
    assert page.locator("text=This answer says who wrote it").count() == 1
    check(page, "pair")
    page.click("summary:has-text('Scores')")
    page.click("summary:has-text('Comment')")
    check(page, "extras")
    page.keyboard.press("Escape")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("?")
    page.wait_for_selector("dialog")
    check(page, "keys")
    page.keyboard.press("Escape")
    desk.only(ranked)
    page.keyboard.press("5")
    page.keyboard.press("Enter")
    page.wait_for_selector(".ranking")
    check(page, "ranking")
    assert problems == []
    assert page.problems == []


def test_a_drag_ends_where_it_is_let_go_and_is_followed_no_further(desk: Any, comparison: Make) -> None:
    desk.only(comparison(_name(), "alpha", "beta", "gamma"))
    _, token = desk.account("dragger")
    page = desk.page(token)
    page.wait_for_selector(".ranking")

    def shown() -> list[str]:
        return [text.strip() for text in page.locator(".rank-item .rendered").all_text_contents()]

    for _ in range(4):  # the last one to the top, each time
        before = shown()
        last, first = page.locator(".handle").nth(2).bounding_box(), page.locator(".rank-item").nth(0).bounding_box()
        page.mouse.move(last["x"] + 8, last["y"] + 10)
        page.mouse.down()
        page.mouse.move(last["x"] + 8, first["y"] + 2, steps=12)
        page.mouse.up()
        assert shown() == [before[2], before[0], before[1]]
        page.mouse.move(last["x"] + 8, last["y"] + 10, steps=12)  # back over the handles, with no button pressed
        assert shown() == [before[2], before[0], before[1]]
        assert page.locator(".dragging").count() == 0


def test_an_untouched_ranking_asks_first(desk: Any, comparison: Make, shoot: Any) -> None:
    desk.only(comparison(_name(), "alpha", "beta", "gamma"))
    account, token = desk.account("hasty")
    page = desk.page(token)
    page.wait_for_selector(".ranking")
    shown = page.locator(".rank-item .rendered").all_text_contents()
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Is this your ranking?")
    shoot(page, "confirm")
    assert desk.votes(account) == []
    page.keyboard.press("Enter")
    page.wait_for_selector("text=All done for now")
    (vote,) = desk.votes(account)
    texts = {"alpha": "a", "beta": "b", "gamma": "c"}
    assert [group[0][-1] for group in vote.ranking] == [texts[text.strip()] for text in shown]


def test_the_administrator_sees_figures_pauses_and_leaves_out(
    desk: Any, comparison: Make, shoot: Any, axe: Any
) -> None:
    names = [_name() for _ in range(4)]
    desk.only(*_pairs(comparison, names), votes_wanted=3)
    account, token = desk.account("watched")
    page = desk.page(token)
    for done in range(4):
        page.wait_for_selector(".scale")
        page.keyboard.press("2")
        page.keyboard.press("Enter")
        _sent(page, done + 1)
    _, root = desk.account("root", "administrator")
    admin = desk.page(root, path="/admin")
    admin.wait_for_selector("text=votes that count")
    name = next(one["name"] for one in accounts.people(desk.store) if one["id"] == account)
    row = admin.locator("tr", has=admin.locator(f"th:has-text('{name}')"))
    assert re.match(r"4", row.locator("td").first.text_content() or "")
    shoot(admin, "administrator")
    assert axe(admin) == []
    row.locator("text=Leave votes out").click()
    admin.fill("#reason", "too fast")
    admin.click("text=Do it")
    admin.wait_for_selector("text=4 votes left out")
    row.locator("text=Pause").click()
    admin.click("text=Do it")
    admin.wait_for_selector(f"text={name} is paused")
    with desk.store.read() as connection:
        out = connection.execute(select(schema.exclusions.c.reason)).scalars().all()
        ours = schema.comparisons.c.id.in_(names)
        taken = dict(connection.execute(select(schema.comparisons.c.id, schema.comparisons.c.taken).where(ours)).all())
        is_open = schema.leases.c.comparison_id.in_(names) & (schema.leases.c.state == "open")
        others = Counter(connection.execute(select(schema.leases.c.comparison_id).where(is_open)).scalars())
        assert out == ["too fast"] * 4
        assert taken == {name: others[name] for name in names}  # pages of others, which look for more by themselves
    page.reload()
    page.wait_for_selector("text=Your work is paused")
    row.locator("text=Bring votes back").click()
    admin.click("text=Do it")
    admin.wait_for_selector("text=4 votes brought back")
    admin.click("text=Invite a rater")
    admin.wait_for_selector("#invitation-link")
    assert "/invite/" in admin.input_value("#invitation-link")
    assert admin.problems == []
