"""A file at the review desk in a real browser: its faults first, then the file without them."""

import uuid
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from preference_ui.store import schema

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]


def _value(field: str) -> str:
    return f"document.querySelector('#{field} textarea, #{field} input')?.value"


def test_a_file_with_faults_is_mended_and_comes_in(desk: Any, tmp_path: Path, shoot: Any) -> None:
    queue = f"q-{uuid.uuid4().hex[:6]}"
    path = tmp_path / "rows.csv"
    path.write_text("prompt,response_1,response_2\nWhy?,Because.,Because.\nHow?,Thus.\n")
    _boss, token = desk.account("boss", role="administrator")
    page = desk.page(token, path="/review", width=1280)
    page.get_by_role("tab", name="Import").click()
    page.locator("#import-queue textarea, #import-queue input").first.fill(queue)
    page.locator("#import-file input[type=file]").set_input_files(path)
    page.wait_for_selector("#import-file >> text=rows.csv")
    page.get_by_role("button", name="Check it").click()
    page.wait_for_function(f"{_value('import-said')}?.startsWith('2 faults.')")
    page.wait_for_selector("#import-faults >> text=two answers are the same >> visible=true")
    page.wait_for_selector("#import-faults >> text=2 cells, and the first line names 3 columns >> visible=true")
    shoot(page, "review-import-faults")
    assert page.locator("#import-enqueue").is_disabled()

    path.write_text("prompt,response_1,response_2\nWhy?,Because.,So.\nHow?,Thus.,Like this.\n")
    page.locator("#import-file").get_by_label("Clear").or_(
        page.locator("#import-file button[aria-label='Remove this file']")
    ).first.click()
    page.locator("#import-file input[type=file]").set_input_files(path)
    page.wait_for_selector("#import-file >> text=rows.csv")
    page.get_by_role("button", name="Check it").click()
    page.wait_for_function(f"{_value('import-said')}?.includes('2 new')")
    page.wait_for_selector("#import-preview >> text=Why? >> visible=true")
    shoot(page, "review-import-preview")
    page.locator("#import-enqueue:not([disabled])").click()
    page.wait_for_function(f"{_value('import-said')}?.startsWith('Imported: 2 new comparisons')")
    with desk.store.read() as connection:
        here = select(func.count()).select_from(schema.comparisons).where(schema.comparisons.c.queue == queue)
        assert connection.execute(here).scalar_one() == 2
    assert page.problems == []
