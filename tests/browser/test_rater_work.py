"""A rater's work besides the vote itself: own votes, differences, thumbs, languages, and votes given offline."""

import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from alignment.records import Comparison
from preference_ui.import_export import export_votes
from preference_ui.store.settings import DeskSettings
from tests.browser.rater_texts import ARABIC, PROSE

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]
Make = Callable[..., Comparison]


def _name() -> str:
    return f"w{uuid.uuid4().hex[:8]}"


def _pairs(make: Make, count: int) -> list[Comparison]:
    names = [_name() for _ in range(count)]
    return [make(name, f"{name} says Paris.", f"{name} says Lyon.", question=f"{name}: the capital?") for name in names]


def _vote(page: Any, key: str, done: int) -> None:
    page.wait_for_selector(".scale")
    page.keyboard.press(key)
    page.keyboard.press("Enter")
    _sent(page, done)


def _sent(page: Any, done: int) -> None:
    page.wait_for_function(f"document.getElementById('progress-words')?.textContent.startsWith('{done} done')")


def _asked(page: Any) -> str:
    return str(page.locator(".turn.user").inner_text()).splitlines()[-1]


def test_undo_goes_back_step_by_step_and_can_be_left(desk: Any, comparison: Make, shoot: Any, axe: Any) -> None:
    desk.only(*_pairs(comparison, 4))
    account, token = desk.account("history")
    page = desk.page(token)
    asked = []
    for done, key in enumerate("17", 1):
        page.wait_for_selector(".scale")
        asked.append(_asked(page))
        _vote(page, key, done)
    asked.append(_asked(page))
    page.keyboard.press("s")
    page.wait_for_selector("dialog")
    page.keyboard.press("2")
    _sent(page, 3)
    before = _asked(page)

    page.keyboard.press("u")
    page.wait_for_selector("text=You said: Skipped: I do not read this language well enough")
    shoot(page, "rater-undo-skipped")
    assert _asked(page) == asked[2]
    page.keyboard.press("u")
    page.wait_for_selector("text=You said: B much better")
    assert _asked(page) == asked[1]
    page.keyboard.press("u")
    page.wait_for_selector("text=You said: A much better")
    assert _asked(page) == asked[0]
    page.keyboard.press("u")
    page.wait_for_selector("text=There is no vote to undo yet")
    page.keyboard.press("Escape")
    page.wait_for_selector(".undone", state="detached")
    assert _asked(page) == before
    assert len(desk.votes(account)) == 3  # nothing was changed

    page.keyboard.press("h")
    page.wait_for_selector(".votes")
    shoot(page, "rater-history")
    assert axe(page) == []
    said = page.locator(".votes .verdict").all_text_contents()
    assert said == ["Skipped: I do not read this language well enough", "B much better", "A much better"]
    page.locator(".votes button").nth(2).click()
    page.wait_for_selector("text=You said: A much better")
    page.keyboard.press("4")
    page.keyboard.press("Enter")
    page.wait_for_selector(".undone", state="detached")
    changed = desk.votes(account)[-1]
    assert (changed.strength, changed.supersedes) == (0, desk.votes(account)[0].id)
    assert page.problems == []


def test_differences_and_as_written_by_one_key(desk: Any, comparison: Make, shoot: Any, axe: Any) -> None:
    desk.only(comparison(_name(), "The **cat** sat on the red mat.", "The dog sat on the mat today."))
    _, token = desk.account("differ")
    page = desk.page(token)
    page.wait_for_selector(".scale")
    page.keyboard.press("d")
    page.wait_for_selector("mark")
    shoot(page, "rater-differences")
    cat, dog = (page.locator(".answer", has_text=word).locator("mark").all_text_contents() for word in ("cat", "dog"))
    assert [text.strip() for text in cat] == ["**cat**", "red"]  # what the other does not have, marks of Markdown too
    assert [text.strip() for text in dog] == ["dog", "today"]
    assert axe(page) == []
    page.keyboard.press("d")
    page.wait_for_selector("mark", state="detached")
    assert page.locator(".answer strong").count() == 1
    page.keyboard.press("w")
    page.wait_for_selector(".as-written")
    assert (
        page.locator(".answer", has_text="cat").locator(".rendered").inner_text() == "The **cat** sat on the red mat."
    )
    shoot(page, "rater-as-written")
    page.reload()
    page.wait_for_selector(".as-written")  # as long as the tab is open
    page.keyboard.press("w")
    page.wait_for_selector(".answer strong")


def test_the_marks_are_a_longest_common_subsequence(desk: Any) -> None:
    """Against the textbook's table on 300 random texts."""
    page = desk.page(path="/login")
    wrong = page.evaluate("""async () => {
      const { difference, words } = await import("/desk/diff.js");
      const longest = (a, b) => {
        const table = a.concat(0).map(() => Array(b.length + 1).fill(0));
        a.forEach((x, i) => b.forEach((y, j) => {
          table[i + 1][j + 1] = x === y ? table[i][j] + 1 : Math.max(table[i][j + 1], table[i + 1][j]);
        }));
        return table[a.length][b.length];
      };
      const said = (text) => words(text).filter((word) => word.trim());
      const kept = (runs) => runs.filter(([, marked]) => !marked).flatMap(([text]) => said(text));
      const make = () => Array.from({ length: Math.random() * 14 }, () => "abcde"[Math.floor(Math.random() * 5)]);
      return Array.from({ length: 300 }, () => [make(), make()]).filter(([a, b]) => {
        const [one, two] = difference(a.join(" "), b.join("  "));
        return one.map(([text]) => text).join("") !== a.join(" ") || two.map(([text]) => text).join("") !== b.join("  ")
          || kept(one).join() !== kept(two).join() || kept(one).length !== longest(a, b);
      });
    }""")
    assert wrong == []


def test_an_answer_that_was_cut_off_says_so(desk: Any, comparison: Make, shoot: Any) -> None:
    made = comparison(_name(), "It goes on and", "It ends.")
    cut = made.responses[0].model_copy(update={"finished": False})
    desk.only(made.model_copy(update={"responses": (cut, made.responses[1])}))
    _, token = desk.account("cut")
    page = desk.page(token)
    page.wait_for_selector(".scale")
    shoot(page, "rater-cut")
    assert page.locator(".answer", has_text="It goes on and").locator(".cut").count() == 1
    assert page.locator(".answer", has_text="It ends.").locator(".cut").count() == 0


def test_thumbs_on_one_answer_are_stored_listed_and_exported(
    desk: Any, comparison: Make, shoot: Any, axe: Any, tmp_path: Any
) -> None:
    good, bad = comparison(_name(), "A kind answer."), comparison(_name(), "A rude answer.")
    desk.only(good, bad)
    account, token = desk.account("thumbs")
    page = desk.page(token)
    for done in (1, 2):
        page.wait_for_selector(".thumbs")
        assert page.locator("button:has-text('bad')").count() == 0
        if done == 1:
            page.keyboard.press("Enter")
            page.wait_for_selector("text=Say whether the answer is good first")
        kind = page.locator(".answer", has_text="kind").count() == 1
        page.keyboard.press("1" if kind else "2")
        shoot(page, f"rater-thumbs-{done}")
        if done == 1:
            assert axe(page) == []
        page.keyboard.press("Enter")
        _sent(page, done)
    assert {vote.comparison_id: vote.outcome for vote in desk.votes(account)} == {good.id: "up", bad.id: "down"}
    page.wait_for_selector(".done")
    page.keyboard.press("h")
    page.wait_for_selector(".votes")
    assert sorted(page.locator(".votes .verdict").all_text_contents()) == ["Bad", "Good"]
    page.locator(".votes button", has_text="Good").click()
    page.wait_for_selector("input[name=thumb]:checked")
    assert page.locator("input[name=thumb]:checked").get_attribute("value") == "up"
    path = tmp_path / "thumbs.jsonl"
    export_votes(desk.store, path, what="thumbs")
    rows = {row["completion"][0]["content"]: row["label"] for row in map(json.loads, path.read_text().splitlines())}
    assert rows["A kind answer."] is True
    assert rows["A rude answer."] is False
    phone = desk.page(desk.account("phone")[1], width=390)
    phone.wait_for_selector(".thumbs")
    shoot(phone, "rater-thumbs-390")
    assert phone.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize(
    ("language", "send"), [("de-AT", "Senden"), ("es-MX", "Enviar"), ("ar", "إرسال"), ("fr", "Send")]
)
def test_the_page_speaks_the_browsers_language(
    desk: Any, comparison: Make, shoot: Any, axe: Any, language: str, send: str
) -> None:
    desk.only(comparison(_name(), *(ARABIC if language == "ar" else PROSE)))
    _, token = desk.account("speaker")
    context = desk.browser.new_context(viewport={"width": 1280, "height": 860}, locale=language)
    context.set_default_timeout(120_000)
    context.add_cookies([{"name": "rlhf_session", "value": token, "url": desk.url}])
    page = context.new_page()
    page.goto(desk.url + "/rate")
    page.wait_for_selector(f"button.send:has-text('{send}')")
    right_to_left = language == "ar"
    desk_element = page.locator(".desk").first
    assert desk_element.evaluate("(one) => getComputedStyle(one).direction") == ("rtl" if right_to_left else "ltr")
    assert desk_element.get_attribute("lang") == (language[:2] if language != "fr" else "en")
    first, second = page.locator(".answer").nth(0).bounding_box(), page.locator(".answer").nth(1).bounding_box()
    assert (first["x"] > second["x"]) is right_to_left
    shoot(page, f"rater-language-{language}")
    assert axe(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.set_viewport_size({"width": 390, "height": 860})
    page.wait_for_timeout(200)
    shoot(page, f"rater-language-{language}-390")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.set_viewport_size({"width": 1280, "height": 860})
    page.locator(".menu summary").click()
    page.select_option(".language select", "es")
    page.wait_for_selector("button.send:has-text('Enviar')")
    page.goto(desk.url + "/login")
    assert page.evaluate("document.documentElement.lang") == "es"
    context.close()


def test_an_arabic_answer_stands_on_the_right(desk: Any, comparison: Make) -> None:
    desk.only(comparison(_name(), *ARABIC))
    _, token = desk.account("arabic")
    page = desk.page(token)
    page.wait_for_selector(".scale")
    script = "(one) => getComputedStyle(one).direction"
    blocks = page.locator(".answer .rendered :is(p, li)")
    assert {blocks.nth(at).evaluate(script) for at in range(blocks.count())} == {"rtl"}
    markers = page.locator(".answer ol")
    assert markers.evaluate("(one) => [getComputedStyle(one).direction, getComputedStyle(one).paddingLeft]") == [
        "rtl",
        "0px",
    ]
    assert page.locator(".turn.user .rendered p").evaluate(script) == "ltr"
    page.keyboard.press("c")
    page.keyboard.type("لا")
    assert page.locator("#comment").evaluate(script) == "rtl"


def test_a_vote_given_offline_is_sent_when_the_page_is_opened_again_and_counts_once(
    desk: Any, comparison: Make, shoot: Any
) -> None:
    first, second = _pairs(comparison, 2)
    desk.only(first, second)
    account, token = desk.account("offline")
    page = desk.page(token)
    page.wait_for_selector(".scale")
    context = page.context
    context.set_offline(True)
    page.keyboard.press("2")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=It is kept in this browser and sent later")
    shoot(page, "rater-offline")
    page.close()
    assert desk.votes(account) == []
    context.set_offline(False)
    page = context.new_page()
    page.goto(desk.url + "/rate")
    page.wait_for_selector("text=Votes that were kept in this browser are saved now")
    _sent(page, 1)
    (vote,) = desk.votes(account)
    assert vote.strength == 2
    page.reload()
    page.wait_for_selector(".scale")
    assert len(desk.votes(account)) == 1
    context.set_offline(True)  # and without closing the page
    page.keyboard.press("6")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=It is kept in this browser and sent later")
    context.set_offline(False)
    page.wait_for_selector("text=All done for now")
    assert [one.strength for one in desk.votes(account)] == [2, 2]


def test_the_page_can_be_installed(desk: Any) -> None:
    _, token = desk.account("installer")
    page = desk.page(token)
    manifest = page.evaluate("""async () => {
      const link = document.querySelector('link[rel=manifest]');
      const reply = await fetch(link.href);
      const body = await reply.json();
      const icons = await Promise.all(body.icons.map(async (icon) => {
        const file = await (await fetch(new URL(icon.src, link.href))).blob();
        const image = await createImageBitmap(file).catch(() => null);
        return [icon.sizes, image && `${image.width}x${image.height}`];
      }));
      const links = document.querySelectorAll('link[rel=manifest]').length;
      return { body, icons, links, type: reply.headers.get('content-type') };
    }""")
    assert manifest["links"] == 1
    assert manifest["type"].startswith("application/manifest+json")
    assert (manifest["body"]["start_url"], manifest["body"]["display"]) == ("/rate", "standalone")
    assert [icon for icon in manifest["icons"] if icon[0] != "any"] == [["192x192"] * 2, ["512x512"] * 2]


@pytest.fixture
def settings(desk: Any) -> Iterator[Callable[..., None]]:
    """Changes the desk's settings, and changes them back."""
    _, before = desk.store.settings()

    def change(**values: Any) -> None:
        desk.store.change_settings(DeskSettings.model_validate(before.model_dump() | values), author="test")

    yield change
    desk.store.change_settings(before, author="test")


def test_guidelines_are_read_again_only_where_they_changed(desk: Any, comparison: Make, settings: Any) -> None:
    desk.only(*_pairs(comparison, 1))
    _, token = desk.account("reader", guidelines_read=0)
    page = desk.page(token)
    page.click("text=I have read this")
    page.wait_for_selector(".scale")
    settings(lease_minutes=20.0)
    page.reload()
    page.wait_for_selector(".scale")
    settings(guidelines="Be kind to the cat.")
    page.reload()
    page.wait_for_selector("text=Be kind to the cat.")
    assert page.locator(".scale").count() == 0
