"""The review desk in a real browser: what an administrator does there is stored, and what raters wrote is text."""

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select

from alignment.records import Comparison
from preference_ui.import_export import Filter, read_votes
from preference_ui.labelling.assignment import next_lease
from preference_ui.labelling.queue import queue_comparisons
from preference_ui.labelling.voting import cast_vote
from preference_ui.store import schema

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]
TEXTS = ("Paris.", "I think it is Lyon.")
ATTACK = "<img src=x onerror=document.title='owned'>"


def _cast(desk: Any, account: str, **wire: Any) -> None:
    lease = next_lease(desk.store, account)
    assert lease is not None
    if best := wire.pop("best", None):
        wire |= {"outcome": "ranked", "strength": -2 if lease.order[0].endswith(f"-{best}") else 2}
    cast_vote(desk.store, account, lease.id, wire)


def _value(page: Any, field: str) -> str:
    return str(page.locator(f"#{field} textarea, #{field} input").first.input_value())


def test_a_disputed_record_is_found_opened_decided_held_and_put_back(
    desk: Any, comparison: Callable[..., Comparison], shoot: Any
) -> None:
    queue = f"q{uuid.uuid4().hex[:6]}"
    disputed, private = f"{queue}-one", f"{queue}-two"
    desk.only()
    question = f"{queue}: is **this** right? {ATTACK}"
    queue_comparisons(desk.store, [comparison(disputed, *TEXTS, question=question)], votes_wanted=3, queue=queue)
    for name, best in (("ada", "a"), ("bob", "a"), ("eve", "b")):
        account, _ = desk.account(name)
        _cast(desk, account, best=best, comment=f"{name} says {ATTACK}")
    queue_comparisons(desk.store, [comparison(private, *TEXTS, question=f"{queue}: who?")], votes_wanted=3, queue=queue)
    flagging, _ = desk.account("flagging")
    _cast(desk, flagging, outcome="flagged", reason="personal_data")
    _account, token = desk.account("boss", role="administrator")
    page = desk.page(token, path="/review", width=1280)

    page.wait_for_selector("#records")
    page.get_by_label("Words of the question").fill(queue)
    page.get_by_role("button", name="Find", exact=True).click()
    page.wait_for_function("document.querySelector('#found textarea')?.value.startsWith('2 records')")
    shoot(page, "review-list")
    page.locator("#records").get_by_text(disputed, exact=True).first.click()
    page.wait_for_function("document.querySelector('#question textarea')?.value.includes('is **this** right')")
    page.wait_for_selector("#votes >> text=ada says >> visible=true")
    shoot(page, "review-record")
    assert ATTACK in _value(page, "question")
    assert page.title() == "Review"  # nothing of it ran

    page.locator("#ruling textarea, #ruling input").first.fill("b >> a")
    page.get_by_role("button", name="Decide").click()
    page.wait_for_selector("#trail >> text=comparison.adjudicate >> visible=true")
    cast = read_votes(desk.store, Filter(queue=queue))
    assert [(pair.chosen, pair.raters) for pair in cast.pairs(0.5)] == [("I think it is Lyon.", 4)]

    page.locator("#record textarea, #record input").first.fill(private)
    page.get_by_role("button", name="Open", exact=True).click()
    page.wait_for_selector("#trail >> text=comparison.hold >> visible=true")
    other, _ = desk.account("other")
    seen = next_lease(desk.store, other)
    assert seen is None or seen.comparison.id != private
    page.get_by_role("button", name="Put back").click()
    page.wait_for_selector("#trail >> text=comparison.put_back >> visible=true")
    with desk.store.read() as connection:
        held = select(schema.comparisons.c.held).where(schema.comparisons.c.id == private)
        assert connection.execute(held).scalar_one() is False
    assert page.problems == []


def test_a_rater_gets_nothing_of_the_review_desk(desk: Any) -> None:
    _account, token = desk.account("curious")
    page = desk.page(token, path="/review")
    assert "for administrators" in page.content()
    for path in ("run/predict", "queue/join", "call/find", "component_server/"):
        reply = page.request.post(f"{desk.url}/review/gradio_api/{path}", data={"fn_index": 0, "data": []})
        assert reply.status in (403, 404)
