"""Stores to test on: SQLite in a folder, and PostgreSQL where its server is installed."""

import contextlib
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import insert

from alignment.records import Comparison, Message, Prompt, Response, Sampling
from preference_ui.accounts.auth import open_session
from preference_ui.store.schema import accounts
from preference_ui.store.store import Store, now
from preference_ui.web.middleware import COOKIE


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty store, on each of the two databases."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/votes.db"
    new_database: Callable[[], str] = request.getfixturevalue("new_database")
    return new_database()


@pytest.fixture(scope="session")
def up_to_date(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite store after all migrations, to be copied: a copy takes a hundredth of the time."""
    path = tmp_path_factory.mktemp("template") / "votes.db"
    Store.open(f"sqlite:///{path}").close()
    return path


@pytest.fixture
def store(store_url: str, request: pytest.FixtureRequest) -> Iterator[Store]:
    if store_url.startswith("sqlite"):
        opened: Store = request.getfixturevalue("sqlite_store")
        yield opened
        return
    opened = Store.open(store_url)
    yield opened
    opened.close()


@pytest.fixture
def sqlite_store(tmp_path: Path, up_to_date: Path) -> Iterator[Store]:
    shutil.copy(up_to_date, tmp_path / "votes.db")
    opened = Store.open(f"sqlite:///{tmp_path}/votes.db", migrate=False)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def comparison() -> Callable[..., Comparison]:
    """Makes a comparison of ``texts``; its answers are called NAME-a, NAME-b …"""

    def make(name: str, *texts: str, question: str = "What is the capital of France?") -> Comparison:
        texts = texts or ("Paris.", "I think it is Lyon.")
        prompt = Prompt(id=f"p-{name}", messages=(Message(role="user", content=question),))
        responses = tuple(
            Response(
                id=f"{name}-{chr(97 + at)}", prompt_id=prompt.id, text=body, model=f"secret-model-{at}",
                sampling=Sampling(), seed=at, tokens=5, finished=True,
            )
            for at, body in enumerate(texts)
        )  # fmt: skip
        return Comparison(id=name, prompt=prompt, responses=responses)

    return make


@pytest.fixture(scope="session")
def add_rater() -> Callable[..., str]:
    """Puts an account into a store, past the trial. Returns its id."""

    def add(store: Store, name: str, **values: object) -> str:
        row = {"id": f"id-{name}", "name": name, "role": "rater", "state": "active", "created": now(),
               "guidelines_read": 0, "trial_passed": True} | values  # fmt: skip
        with store.write() as connection:
            connection.execute(insert(accounts).values(row))
        return f"id-{name}"

    return add


@dataclass
class RunningApp:
    """The app as its own process, over real HTTP, and its store from this side."""

    url: str
    store: Store
    administrator_link: str

    def sign_in(self, name: str, role: str = "rater", **values: object) -> httpx.Client:
        """A client with a session of a new account, guidelines read and trial passed."""
        row = {"id": uuid.uuid4().hex, "name": f"{name}-{uuid.uuid4().hex[:6]}", "role": role, "state": "active",
               "created": now(), "guidelines_read": 99, "trial_passed": True} | values  # fmt: skip
        with self.store.write() as connection:
            connection.execute(insert(accounts).values(row))
            token = open_session(connection, str(row["id"]), str(row["name"]))
        client = httpx.Client(base_url=self.url, cookies={COOKIE: token}, timeout=30)
        client.account = row["id"]  # type: ignore[attr-defined]
        client.name = row["name"]  # type: ignore[attr-defined]
        return client

    def call(
        self, client: httpx.Client, function: str, data: object = None, page: str = "/rate", **body: object
    ) -> Any:
        """Calls a handler as the browser does."""
        sent = {"data": data, "component_id": self.component(page), "fn_name": function, "session_hash": "abc"} | body
        reply = client.post(f"{page}/gradio_api/component_server/", json=sent)
        return reply.json() if reply.status_code == 200 else reply

    def component(self, page: str) -> int:
        if page not in self._components:
            administrator = self.sign_in("config", "administrator")
            parts = administrator.get(f"{page}/config").json()["components"]
            self._components[page] = next(part["id"] for part in parts if part["type"] == "html")
        return self._components[page]

    _components: dict[str, int] = field(default_factory=dict)


_APP = """
import time
from preference_ui.app import serve
from preference_ui.arena.talks import Contestant

def contestant(name):
    def answer(messages, seed):  # says again what it heard, in three pieces
        said = messages[-1].content
        for part in range(1, 4):
            time.sleep(0.3 if "slowly" in said else 0.06)
            yield f"I heard {len(messages)}: {said}"[: 1000 if part == 3 else 9 * part]
    return Contestant(name, f"digest-{name}", answer)

serve(%r, port=%d, contestants=[contestant("secret-version-one"), contestant("secret-version-two")])
"""


@pytest.fixture(scope="session")
def running_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    """One app for all tests of a run; every test uses its own accounts and comparisons."""
    folder = tmp_path_factory.mktemp("app")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store_url = f"sqlite:///{folder}/votes.db"
    code = _APP % (store_url, port)
    log = (folder / "log").open("w")
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout is not None
    said = process.stdout.readline() + process.stdout.readline()
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 200  # importing Gradio takes its time beside another worker
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/health").status_code == 200:
                break
        time.sleep(0.25)
    else:
        raise RuntimeError(f"the app did not start: {(folder / 'log').read_text()[-2000:]}")
    store = Store.open(store_url)
    yield RunningApp(url, store, said.split()[-1].replace("localhost", "127.0.0.1"))
    store.close()
    process.terminate()
    process.wait(timeout=20)
    log.close()
