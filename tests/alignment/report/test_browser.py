"""The report in Chromium: no error, nothing asked from outside, and no sideways scrolling on a phone."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from alignment.report import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

Run: TypeAlias = Any  # the FinishedRun of conftest.py, which cannot be imported

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]


@pytest.fixture
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark"), (320, "light")])
def test_it_opens_clean_and_fits(
    browser: Any, finished_run: Run, tmp_path: Path, width: int, scheme: str, axe: Callable[[Any], list[str]]
) -> None:
    path = write_report(finished_run.report(), tmp_path / "run")
    page = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme).new_page()
    heard: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_timeout(200)
    assert heard == []
    assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#lineage svg:visible").count() == 1
    page.locator("details").evaluate_all("all => all.forEach(one => one.open = true)")
    assert axe(page) == []
    assert page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") == (scheme == "dark")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(15, 21, 24)"
    assert dark == (scheme == "dark")


def test_a_command_can_be_copied(browser: Any, finished_run: Run, tmp_path: Path) -> None:
    path = write_report(finished_run.report(), tmp_path / "run")
    page = browser.new_context(permissions=["clipboard-read", "clipboard-write"]).new_page()
    page.goto(path.as_uri())
    page.locator(".command button").first.click()
    page.wait_for_function("document.querySelector('.command button').textContent === 'Copied'")
    assert page.evaluate("navigator.clipboard.readText()") == "rlhf chat policy/3 --workspace workspace"


def test_labels_of_a_figure_stay_inside_it(browser: Any, finished_run: Run, tmp_path: Path) -> None:
    path = write_report(finished_run.report(), tmp_path / "run")
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.goto(path.as_uri())
    outside = page.evaluate(
        """() => [...document.querySelectorAll("figure svg text, .strip svg text")].filter((text) => {
          const box = text.getBoundingClientRect(), svg = text.ownerSVGElement.getBoundingClientRect();
          return box.left < svg.left - 1 || box.right > svg.right + 1 || box.bottom > svg.bottom + 1;
        }).map((text) => text.textContent)"""
    )
    assert outside == []
