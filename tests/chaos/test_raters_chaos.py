"""The app is killed, its disk fills, its database turns read-only: what was acknowledged is there, once."""

import importlib.util
import os
import random
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from preference_ui.labelling.assignment import next_lease
from preference_ui.labelling.voting import cast_vote
from preference_ui.store import schema
from preference_ui.store.store import Store, StoreError
from preference_ui.web.middleware import COOKIE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
BOTH_BAD = {"outcome": "both_bad"}


@pytest.fixture(scope="module")
def load() -> ModuleType:
    """The load generator of the benchmark."""
    path = Path(__file__).parents[1] / "benchmarks/raters.py"
    spec = importlib.util.spec_from_file_location("raters_load", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _Rater(threading.Thread):
    """Votes on and on; what fails is sent again with the same lease, as the browser does."""

    def __init__(self, address: str, token: str, stop: threading.Event, component: int) -> None:
        super().__init__()
        self.client = httpx.Client(base_url=address, cookies={COOKIE: token}, timeout=20)
        self.stop, self.component = stop, component
        self.acknowledged: list[str] = []
        self.refused: list[Any] = []

    def run(self) -> None:
        screen = None
        while not self.stop.is_set():
            try:
                if screen is None:
                    screen = self._call("begin", None)["screen"]
                if screen["lease"] is None:
                    return
                reply = self._call("vote", {"lease": screen["lease"], "verdict": BOTH_BAD})
            except (httpx.HTTPError, ValueError):
                time.sleep(0.2)
                continue
            if reply["ok"]:
                self.acknowledged.append(screen["lease"])
                screen = reply["screen"]
            elif reply["code"] != "unavailable":
                self.refused.append(reply)
                screen = None
            time.sleep(random.random() * 0.05)

    def _call(self, function: str, data: Any) -> Any:
        body = {"data": data, "component_id": self.component, "fn_name": function, "session_hash": "x"}
        reply = self.client.post("/rate/gradio_api/component_server/", json=body)
        if reply.status_code != 200:
            raise ValueError(reply.status_code)
        return reply.json()


def test_every_acknowledged_vote_survives_a_kill_once(load: ModuleType, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/votes.db"
    store = Store.open(url)
    tokens = load.prepare(store, 12, 3000)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = load.start(url, tmp_path / "log", port)
    load.wait_for(port)
    first = httpx.Client(base_url=f"http://127.0.0.1:{port}", cookies={COOKIE: tokens[0]}, timeout=60)
    parts = first.get("/rate/config").json()["components"]
    component = next(part["id"] for part in parts if part["type"] == "html")
    stop = threading.Event()
    raters = [_Rater(f"http://127.0.0.1:{port}", token, stop, component) for token in tokens]
    for rater in raters:
        rater.start()
    kills = 5
    for _ in range(kills):
        time.sleep(3 + random.random() * 2)
        process.kill()
        process.wait()
        process = load.start(url, tmp_path / "log", port)
        load.wait_for(port)
    time.sleep(3)
    stop.set()
    for rater in raters:
        rater.join(timeout=60)
    process.kill()
    process.wait()
    acknowledged = [lease for rater in raters for lease in rater.acknowledged]
    with store.read() as connection:
        stored = list(connection.execute(select(schema.votes.c.lease_id)).scalars())
    store.close()
    assert len(acknowledged) > 50
    assert set(acknowledged) <= set(stored)
    assert len(stored) == len(set(stored))
    assert len(acknowledged) == len(set(acknowledged))
    assert [rater.refused for rater in raters if rater.refused] == []


def test_a_locked_database_is_said_keeps_the_draft_and_acknowledges_nothing(load: ModuleType, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/votes.db"
    store = Store.open(url)
    (token,) = load.prepare(store, 1, 3)
    with load.running(url, tmp_path / "log") as address:
        client = httpx.Client(base_url=address, cookies={COOKIE: token}, timeout=60)
        parts = client.get("/rate/config").json()["components"]
        component = next(part["id"] for part in parts if part["type"] == "html")

        def call(function: str, data: Any = None) -> Any:
            body = {"data": data, "component_id": component, "fn_name": function, "session_hash": "x"}
            return client.post("/rate/gradio_api/component_server/", json=body).raise_for_status().json()

        lease = call("begin")["screen"]["lease"]
        assert call("draft", {"lease": lease, "draft": {"comment": "half a thought"}})["ok"]
        other = sqlite3.connect(tmp_path / "votes.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")  # another process writes, for longer than anybody waits
        refused = call("vote", {"lease": lease, "verdict": BOTH_BAD})
        assert (refused["ok"], refused["code"]) == (False, "unavailable")
        assert "Nothing is lost" in refused["say"]
        other.execute("ROLLBACK")
        other.close()
        again = call("begin")["screen"]
        assert (again["lease"], again["draft"]) == (lease, {"comment": "half a thought"})
        with store.read() as connection:
            assert connection.execute(select(schema.votes.c.id)).all() == []
        assert call("vote", {"lease": lease, "verdict": BOTH_BAD})["ok"]
        with store.read() as connection:
            assert connection.execute(select(schema.votes.c.lease_id)).scalars().all() == [lease]
    store.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = os.geteuid() == 0 and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], check=False, capture_output=True
    ).returncode == 0  # fmt: skip
    if not mounted:
        pytest.skip("a small file system can only be mounted by root")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_acknowledges_nothing_without_a_row(load: ModuleType, small_disk: Path) -> None:
    store = Store.open(f"sqlite:///{small_disk}/votes.db")
    load.prepare(store, 1, 300)
    with store.read() as connection:
        account = connection.execute(select(schema.accounts.c.id)).scalar_one()
    acknowledged, failure = [], None
    with (small_disk / "filler").open("wb") as filler:
        free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
        filler.write(b"x" * (free - 60_000))
    for _ in range(300):
        try:
            lease = next_lease(store, account)
            assert lease is not None
            cast_vote(store, account, lease.id, BOTH_BAD)
            acknowledged.append(lease.id)
        except StoreError as error:
            failure = error
            break
    assert failure is not None
    assert "full" in str(failure) or "I/O" in str(failure)
    (small_disk / "filler").unlink()
    with store.read() as connection:
        assert set(connection.execute(select(schema.votes.c.lease_id)).scalars()) == set(acknowledged)
    lease = next_lease(store, account)  # there is room again: work goes on, with the same comparison in hand
    assert lease is not None
    cast_vote(store, account, lease.id, BOTH_BAD)
    store.close()


def test_a_read_only_disk_acknowledges_nothing(load: ModuleType, small_disk: Path) -> None:
    url = f"sqlite:///{small_disk}/votes.db"
    store = Store.open(url)
    load.prepare(store, 1, 5)
    with store.read() as connection:
        account = connection.execute(select(schema.accounts.c.id)).scalar_one()
    lease = next_lease(store, account)
    assert lease is not None
    store.close()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    try:
        with pytest.raises(StoreError):
            cast_vote(Store.open(url, migrate=False), account, lease.id, BOTH_BAD)
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    again = Store.open(url)
    with again.read() as connection:
        assert connection.execute(select(schema.votes)).all() == []
    assert cast_vote(again, account, lease.id, BOTH_BAD).repeated is False
    again.close()
