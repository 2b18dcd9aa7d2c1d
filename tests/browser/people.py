"""People for a real round: each comes by an invitation, reads, does the trial, and votes by keyboard until all is done.

    python tests/browser/people.py --url http://127.0.0.1:7860 --workspace workspace --people 2

They like the shorter answer, by how much shorter it is, and now and then (``--noise``) choose without reading. Prints
one JSON object: who voted how often, and how long a vote took from the key to the next comparison.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from alignment.workspace import Workspace
from flows.pipeline.human_votes import store_url
from preference_ui.accounts import accounts
from preference_ui.store.store import Store

PASSWORD = "three calm green rivers"
FLAGS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:7860")
    parser.add_argument("--workspace", type=Path, default=Path("workspace"))
    parser.add_argument("--people", type=int, default=2)
    parser.add_argument("--noise", type=float, default=0.05)
    arguments = parser.parse_args()
    store = Store.open(store_url(Workspace(arguments.workspace.resolve())))
    links = [accounts.invite(store, "rater", created_by="people.py") for _ in range(arguments.people)]
    store.close()
    done: dict[str, list[float]] = {}
    threads = [
        threading.Thread(target=_person, args=(arguments.url, link, random.Random(at), arguments.noise, done))
        for at, link in enumerate(links)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = [
        {"name": name, "votes": len(took), "median_ms": round(1000 * statistics.median(took or [0.0]), 1)}
        for name, took in sorted(done.items())
    ]
    print(json.dumps(rows, indent=2))
    return int(len(rows) < arguments.people or not all(row["votes"] for row in rows))


def _person(url: str, link: str, rng: random.Random, noise: float, done: dict[str, list[float]]) -> None:
    name = f"person-{uuid.uuid4().hex[:6]}"
    chromium = os.environ.get("RLHF_CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        page = browser.new_context(viewport={"width": 1280, "height": 860}).new_page()
        page.set_default_timeout(120_000)
        page.goto(f"{url}/invite/{link}")
        page.fill("#name", name)
        page.fill("#password", PASSWORD)
        page.keyboard.press("Enter")
        page.click("text=I have read this")
        done[name] = _vote(page, rng, noise)
        browser.close()


def _vote(page: Any, rng: random.Random, noise: float) -> list[float]:
    took: list[float] = []
    while True:
        page.wait_for_selector(".scale, .done")
        if page.locator(".done").count():
            return took
        first, second = (len(text) for text in page.locator(".answer .rendered").all_inner_texts())
        page.keyboard.press(rng.choice("17") if rng.random() < noise else _key(first, second))
        trial = page.locator(".banner").count() > 0
        before = time.perf_counter()
        page.keyboard.press("Enter")
        if trial:
            page.click("text=Start working")
            page.wait_for_selector(".banner", state="detached")
            continue
        words = f"document.getElementById('progress-words')?.textContent.startsWith('{len(took) + 1} done')"
        page.wait_for_function(words)
        took.append(time.perf_counter() - before)


def _key(first: int, second: int) -> str:
    """1 (the first is much better) to 7: the shorter one, by the ratio of their lengths; 4 is a tie."""
    ratio = (first + 1) / (second + 1)
    steps = ((0.5, "1"), (0.8, "2"), (1.0, "3"), (1.0001, "4"), (1.25, "5"), (2.0, "6"))
    return next((key for most, key in steps if ratio < most), "7")


if __name__ == "__main__":
    sys.exit(main())
