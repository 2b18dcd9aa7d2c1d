"""The app as its own process and Debian's Chromium before it. Screenshots go to tests/output, which git ignores."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import insert, select, update

from alignment.records import Comparison, Message, Prompt, Response, Sampling, Vote
from preference_ui.accounts.auth import open_session
from preference_ui.labelling.queue import queue_comparisons
from preference_ui.labelling.voting import to_record
from preference_ui.store import schema
from preference_ui.store.settings import DeskSettings
from preference_ui.store.store import Store, now
from preference_ui.web.middleware import COOKIE

OUTPUT = Path(__file__).parents[1] / "output"
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync")  # fmt: skip


@dataclass
class Desk:
    """The running app, its store, and a browser."""

    url: str
    store: Store
    browser: Any
    restart: Callable[[], None]
    stop: Callable[[], None]

    def account(self, name: str, role: str = "rater", **values: object) -> tuple[str, str]:
        """A new account past guidelines and trial: its id and a session's token."""
        row = {"id": uuid.uuid4().hex, "name": f"{name}-{uuid.uuid4().hex[:5]}", "role": role, "state": "active",
               "created": now(), "guidelines_read": 99, "trial_passed": True} | values  # fmt: skip
        with self.store.write() as connection:
            connection.execute(insert(schema.accounts).values(row))
            return str(row["id"]), open_session(connection, str(row["id"]), str(row["name"]))

    def page(self, token: str | None = None, *, path: str = "/rate", width: int = 1280, dark: bool = False) -> Any:
        """A page of its own context, signed in where a token is given."""
        context = self.browser.new_context(
            viewport={"width": width, "height": 860}, color_scheme="dark" if dark else "light", has_touch=width < 600
        )
        context.set_default_timeout(120_000)
        if token:
            context.add_cookies([{"name": COOKIE, "value": token, "url": self.url}])
        page = context.new_page()
        page.problems = []
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.goto(self.url + path)
        return page

    def only(self, *items: Comparison, votes_wanted: int = 10) -> None:
        """These comparisons, and no others, are in the queue."""
        with self.store.write() as connection:
            work = schema.comparisons.c.purpose == "work"
            connection.execute(update(schema.comparisons).where(work).values(withdrawn=True))
        queue_comparisons(self.store, items, votes_wanted=votes_wanted)

    def votes(self, account: str) -> list[Vote]:
        """What is stored of a rater, oldest first."""
        query = select(schema.votes).where(schema.votes.c.account_id == account).order_by(schema.votes.c.created)
        with self.store.read() as connection:
            return [to_record(row, account) for row in connection.execute(query)]


def screenshot(page: Any, name: str) -> None:
    OUTPUT.mkdir(exist_ok=True)
    page.screenshot(path=OUTPUT / f"{name}.png")


@pytest.fixture(scope="session")
def shoot() -> Callable[[Any, str], None]:
    return screenshot


@pytest.fixture(scope="module")
def app_setup() -> str:
    """Python that the app's process runs first; it may name contestants of the arena as ``ring``."""
    return "ring = ()"


@pytest.fixture(scope="module")  # while Playwright runs, its event loop keeps others from starting one in this thread
def desk(tmp_path_factory: pytest.TempPathFactory, app_setup: str) -> Iterator[Desk]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    chromium = os.environ.get("RLHF_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no Chromium is installed (Debian: chromium)")
    folder = tmp_path_factory.mktemp("desk")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url, store_url = f"http://127.0.0.1:{port}", f"sqlite:///{folder}/votes.db"
    store = Store.open(store_url)
    quiet = DeskSettings(gold_share=0, repeat_share=0, random_share=0)
    store.change_settings(quiet, author="test")
    running: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        code = f"{app_setup}\nfrom preference_ui.app import serve\nserve({store_url!r}, port={port}, contestants=ring)"
        with (folder / "log").open("a") as log:
            running.append(subprocess.Popen([sys.executable, "-c", code], stdout=log, stderr=log))
        end = time.monotonic() + 300  # beside other work the start may take minutes
        while time.monotonic() < end and running[-1].poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{url}/health", timeout=30).status_code == 200:
                    return
            time.sleep(0.25)
        raise AssertionError((folder / "log").read_text())

    def stop() -> None:
        running[-1].kill()
        running[-1].wait(timeout=20)

    start()
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        yield Desk(url, store, browser, start, stop)
        browser.close()
    stop()
    store.close()


@pytest.fixture(scope="session")
def comparison() -> Callable[..., Comparison]:
    def make(name: str, *texts: str, question: str = "What is the capital of France?") -> Comparison:
        prompt = Prompt(id=f"p-{name}", messages=(Message(role="user", content=question),))
        responses = tuple(
            Response(id=f"{name}-{chr(97 + at)}", prompt_id=prompt.id, text=text, model=f"secret-model-{at}",
                     sampling=Sampling(), seed=at, tokens=5, finished=True)
            for at, text in enumerate(texts)
        )  # fmt: skip
        return Comparison(id=name, prompt=prompt, responses=responses)

    return make
