"""The rater's page stays on the screen, whatever is to be read, and its controls stand out from what is around them."""

import uuid
from collections.abc import Callable
from typing import Any

import pytest

from alignment.records import Comparison
from tests.browser.rater_texts import CODE, CONVERSATION, KINDS, LONG

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]
Make = Callable[..., Comparison]
WIDTHS = (1280, 820, 390)
# The least contrast of every control with what is around it, by WCAG's formula: of its border or its own ground,
# whichever shows more.
CONTRASTS = """() => {
  const linear = (part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  const channel = (value) => linear(value / 255);
  const read = (text) => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return { r, g, b, a }; };
  const light = ({ r, g, b }) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const ratio = (one, two) => {
    const [low, high] = [light(one), light(two)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const seen = (one) => one.checkVisibility() && one.getBoundingClientRect().width > 1;
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = read(getComputedStyle(at).backgroundColor);
      if (colour.a === 1) return colour;
    }
    return { r: 255, g: 255, b: 255 };
  };
  return [...document.querySelectorAll(SELECTOR)].filter(seen).map((one) => {
    const style = getComputedStyle(one), around = ground(one.parentElement), edge = read(style.borderTopColor);
    const border = edge.a === 1 && parseFloat(style.borderTopWidth) >= 1 ? ratio(edge, around) : 1;
    return [Math.max(border, ratio(ground(one), around)), one.outerHTML.slice(0, 90)];
  });
}"""
CONTROLS = "'.desk button:not(.plain), .desk textarea, .desk select, .step label, .score label, .desk .card'"


def _at(kind: str, comparison: Make) -> Comparison:
    made = comparison(f"{kind}-{uuid.uuid4().hex[:6]}", *KINDS[kind])
    if kind != "conversation":
        return made
    return made.model_copy(update={"prompt": made.prompt.model_copy(update={"messages": CONVERSATION})})


def _boxes(page: Any, selector: str) -> list[dict[str, float]]:
    script = "(s) => [...document.querySelectorAll(s)].map((one) => one.getBoundingClientRect().toJSON())"
    return [dict(one) for one in page.evaluate(script, selector)]


def _fits(page: Any, name: str) -> list[str]:
    width = page.evaluate("innerWidth")
    wide = page.evaluate("document.documentElement.scrollWidth")
    wrong = [f"{name}: the page is {wide} px wide of {width}"] if wide > width else []
    for part in (".answer", ".prompt", ".bar", ".rank-tools button", ".notice:not([hidden])"):
        over = [box["right"] for box in _boxes(page, part) if box["right"] > width or box["left"] < 0]
        wrong += [f"{name}: {part} reaches to {max(over):.0f} px of {width}"] if over else []
    return wrong


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_wider_than_the_view_and_answers_can_be_seen(
    desk: Any, comparison: Make, shoot: Any, axe: Any, kind: str
) -> None:
    desk.only(_at(kind, comparison))
    _, token = desk.account(kind)
    page = desk.page(token)
    page.wait_for_selector(".scale")
    wrong = []
    for width in WIDTHS:
        for theme in ("light", "dark"):
            page.set_viewport_size({"width": width, "height": 860})
            page.emulate_media(color_scheme=theme)
            page.wait_for_timeout(150)
            name = f"{kind}-{width}-{theme}"
            wrong += _fits(page, name)
            first, bar = _boxes(page, ".answer")[0], _boxes(page, ".bar")[0]
            if first["top"] > bar["top"] - 120:
                wrong.append(f"{name}: the answers begin at {first['top']:.0f} px, and the bar at {bar['top']:.0f}")
            shoot(page, f"rater-{name}")
        wrong += [f"{kind}-{width}: {one}" for one in axe(page)]
    assert wrong == []
    assert page.problems == []


def test_a_ranking_of_long_lines_keeps_its_buttons(desk: Any, comparison: Make, shoot: Any, axe: Any) -> None:
    desk.only(comparison(f"ranked-{uuid.uuid4().hex[:6]}", *CODE, LONG[0]))
    _, token = desk.account("ranker")
    page = desk.page(token)
    page.wait_for_selector(".ranking")
    wrong = []
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 860})
        page.wait_for_timeout(150)
        wrong += _fits(page, f"ranking-{width}")
        shoot(page, f"rater-ranking-{width}")
    assert wrong == []
    assert axe(page) == []


def test_wide_screens_are_used(desk: Any, comparison: Make, shoot: Any) -> None:
    desk.only(_at("conversation", comparison))
    _, token = desk.account("wide")
    page = desk.page(token, width=1920)
    page.wait_for_selector(".scale")
    shoot(page, "rater-wide")
    first, second = _boxes(page, ".answer")
    assert second["right"] - min(first["left"], _boxes(page, ".prompt")[0]["left"]) > 1700
    assert _boxes(page, ".prompt")[0]["right"] <= first["left"]  # a long conversation stands beside the answers


@pytest.mark.parametrize("dark", [False, True])
def test_controls_and_borders_stand_out(desk: Any, comparison: Make, dark: bool) -> None:
    """WCAG 2.2, 1.4.11: 3 : 1."""
    desk.only(_at("prose", comparison))
    _, token = desk.account("eyes")
    page = desk.page(token, dark=dark)
    page.wait_for_selector(".scale")
    page.click("summary:has-text('Scores')")
    page.click("summary:has-text('Comment')")
    found = page.evaluate(CONTRASTS.replace("SELECTOR", CONTROLS))
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("s")
    page.wait_for_selector("dialog")
    found += page.evaluate(CONTRASTS.replace("SELECTOR", "'dialog button, dialog'"))
    assert len(found) > 25
    assert [(round(ratio, 2), where) for ratio, where in found if ratio < 3] == []


def test_a_message_is_seen_where_the_rater_is(desk: Any, comparison: Make, shoot: Any) -> None:
    desk.only(_at("long", comparison), _at("prose", comparison))
    _, token = desk.account("far")
    for width in (1280, 390):
        page = desk.page(token, width=width)
        page.wait_for_selector(".scale")
        page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
        page.keyboard.press("Enter")  # nothing is chosen yet
        page.wait_for_selector(".notice:not([hidden])")
        shoot(page, f"rater-message-{width}")
        seen = page.evaluate("""() => {
          const box = document.querySelector('.notice').getBoundingClientRect();
          const top = document.elementFromPoint(box.left + box.width / 2, box.top + box.height / 2);
          return top?.closest('.notice') !== null && box.top >= 0 && box.bottom <= innerHeight;
        }""")
        assert seen


def test_the_button_that_stands_out_does_what_the_window_asks(desk: Any, comparison: Make, shoot: Any) -> None:
    desk.only(_at("prose", comparison))
    _, token = desk.account("button")
    page = desk.page(token)
    page.wait_for_selector(".scale")
    for key in "sf":
        page.keyboard.press(key)
        page.wait_for_selector("dialog")
        assert page.locator("dialog .primary", has_text="Cancel").count() == 0
        focused = page.evaluate("document.activeElement.textContent")
        assert "Cancel" not in focused
        shoot(page, f"rater-dialog-{key}")
        page.keyboard.press("Escape")
        page.wait_for_selector("dialog", state="detached")


def test_the_end_leads_on(desk: Any, shoot: Any) -> None:
    desk.only()
    _, token = desk.account("finished")
    page = desk.page(token)
    page.wait_for_selector("text=All done for now")
    shoot(page, "rater-done")
    assert page.locator(".done button:has-text('Your votes')").count() == 1
    assert page.locator(".done button:has-text('Look again')").count() == 1


def test_the_question_and_what_was_answered_before_look_different(desk: Any, comparison: Make) -> None:
    desk.only(_at("conversation", comparison))
    _, token = desk.account("turns")
    page = desk.page(token)
    page.wait_for_selector(".scale")
    script = """(s) => {
      const look = getComputedStyle(document.querySelector(s));
      return [look.backgroundColor, look.borderInlineStartColor, look.marginInlineStart];
    }"""
    asked, answered = (page.evaluate(script, f".turn.{role}") for role in ("user", "assistant"))
    assert all(one != other for one, other in zip(asked, answered, strict=True))
