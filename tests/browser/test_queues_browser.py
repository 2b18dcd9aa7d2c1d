"""Two queues and two raters in a real browser, and the administrator who decides about them."""

import uuid
from collections.abc import Callable
from typing import Any

import pytest

from alignment.records import Comparison
from preference_ui.labelling.queue import queue_comparisons
from preference_ui.store.queue_settings import QueueSettings, change_queue, current_queue

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]
TEXTS = ("Paris.", "I think it is Lyon.")


def _fill(page: Any, field: str, text: str) -> None:
    page.locator(f"#{field} textarea, #{field} input").first.fill(text)


def _vote_until_done(page: Any) -> list[str]:
    """Votes by keyboard until nothing is left. Returns the queue that each screen named."""
    named: list[str] = []
    while True:
        page.wait_for_selector(".scale, .done, .reading")
        if page.locator(".done").count():
            return named
        if page.locator(".reading").count():
            named.append("read: " + page.locator(".reading .rendered").inner_text().strip())
            page.click("text=I have read this")
            page.wait_for_selector(".reading", state="detached")
            continue
        named.append(page.locator("#queue-name").inner_text())
        page.keyboard.press("1")
        page.keyboard.press("Enter")
        done = f"{sum(not one.startswith('read') for one in named)} done"
        page.wait_for_function(f"document.getElementById('progress-words')?.textContent.startsWith('{done}')")


def test_two_raters_each_get_their_queues_in_order_and_read_what_is_theirs(
    desk: Any, comparison: Callable[..., Comparison], shoot: Any
) -> None:
    code, prose = (f"{name}-{uuid.uuid4().hex[:6]}" for name in ("code", "prose"))
    desk.only()
    for queue in (code, prose):
        items = [comparison(f"{queue}-{at}", *TEXTS) for at in range(2)]
        queue_comparisons(desk.store, items, votes_wanted=2, queue=queue)
    ada, ada_token = desk.account("ada")
    bob, bob_token = desk.account("bob")
    with desk.store.read() as connection:
        name = connection.exec_driver_sql(f"SELECT name FROM accounts WHERE id = '{ada}'").scalar_one()
    _boss, boss_token = desk.account("boss", role="administrator")

    admin = desk.page(boss_token, path="/review", width=1280)
    admin.get_by_role("tab", name="Queues").click()
    admin.locator("#queues").get_by_text(code, exact=True).first.click()
    admin.wait_for_function(f"document.querySelector('#queue textarea, #queue input')?.value === '{code}'")
    admin.wait_for_function("document.querySelector('#queue-version textarea, #queue-version input')?.value === '0'")
    _fill(admin, "queue-guidelines", "**Run** the code first.")
    _fill(admin, "queue-raters", name)
    _fill(admin, "queue-priority", "2")
    admin.get_by_role("button", name="Save the queue").click()
    admin.wait_for_function("document.querySelector('#queues-said textarea')?.value === 'Saved.'")
    shoot(admin, "review-queues")
    assert admin.problems == []
    with desk.store.read() as connection:
        version, settings = current_queue(connection, code)
    assert (version, settings.raters, settings.priority) == (1, (name,), 2)

    first = desk.page(ada_token)
    assert _vote_until_done(first) == ["read: Run the code first.", *[f"Queue: {code}"] * 2, *[f"Queue: {prose}"] * 2]
    shoot(first, "queues-done")
    second = desk.page(bob_token)
    assert _vote_until_done(second) == [f"Queue: {prose}"] * 2
    assert {vote.comparison_id.rpartition("-")[0] for vote in desk.votes(bob)} == {prose}

    change_queue(desk.store, prose, QueueSettings(open=False), author="boss")
    second.keyboard.press("u")  # its votes stay as they are
    second.wait_for_selector("text=This queue is closed, and its votes stay as they are.")
    assert first.problems == second.problems == []
