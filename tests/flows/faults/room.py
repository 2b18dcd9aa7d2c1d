"""A workspace in which every stage of a recipe was made once, undisturbed, and what stages are compared by."""

import contextlib
import json
import shutil
import sqlite3
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import insert

from alignment.durable_files import file_digest
from alignment.records import Artifact
from alignment.workspace import Workspace
from preference_ui.accounts.auth import open_session
from preference_ui.labelling.assignment import next_lease
from preference_ui.labelling.voting import cast_vote
from preference_ui.store import schema
from preference_ui.store.store import Store, now
from tests.flows.faults.commands import Command, Commands

TIMES = ("seconds", "tokens_per_second", "episodes_per_second")  # curves of PPO that hold how long it took
DATABASES = ("prefect/prefect.db", "mlflow.db", "raters/votes.db")
DISK = 512  # MiB, of which a workspace takes some 40


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Has ``folder`` be a small disk of its own, where this user may mount one. Says whether it is."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}m", "none", str(folder)]
    mounted = subprocess.run(mount, check=False, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """While not one more byte has room beside ``folder``'s files."""
    filler = folder / "filler"
    try:
        with filler.open("wb", buffering=0) as file:
            for size in (1 << 20, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(b"x" * size)
        yield
    finally:
        filler.unlink(missing_ok=True)


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """While another connection is about to write to each of the workspace's databases, and never does."""
    with ExitStack() as held:
        for path in (root / name for name in DATABASES):
            if path.exists():
                database = sqlite3.connect(path, timeout=60, isolation_level=None)
                held.callback(database.close)
                database.execute("BEGIN EXCLUSIVE")
                held.callback(database.rollback)
        yield


def content(artifact: Artifact) -> dict[str, str]:
    """The digest of each of an artifact's files by its name; curves without those that tell the time."""
    folder = Path(artifact.path)
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    found = {name: file_digest(path) for name, path in files.items() if name not in ("artifact.json", "curves.json")}
    if "curves.json" in files:
        curves = json.loads(files["curves.json"].read_text("utf-8"))
        found["curves.json"] = json.dumps({k: v for k, v in curves.items() if not k.startswith(TIMES)}, sort_keys=True)
    return found


@dataclass(frozen=True)
class Made:
    """What a stage made where nothing disturbed it."""

    content: dict[str, str]
    seconds: float


class Room:
    """A workspace, its recipe and the commands in it; ``disk`` is the folder of the small disk below it, if any."""

    def __init__(self, recipe: Path, root: Path, logs: Path, disk: Path | None = None) -> None:
        self.recipe, self.root, self.disk = recipe, root, disk
        self.commands = Commands(root, logs)
        self.made: dict[tuple[str, ...], Made] = {}

    def prepare(self) -> None:
        """Makes every stage, people's votes among them."""
        ended = self.commands.run("run", self.recipe, seconds=600)
        if "waits for raters" in ended.said:
            vote_on_all(self.root)
            ended = self.commands.run("run", self.recipe, seconds=600)
        assert ended.code == 0, ended.said[-3000:]
        for artifact in Workspace(self.root).artifacts():
            self.made[(artifact.name,)] = Made(content(artifact), artifact.seconds)

    @contextmanager
    def without(self, stage: str) -> Iterator[None]:
        """While the workspace knows nothing of what ``stage`` made."""
        places = [self.root / "artifacts" / stage, self.root / "digests" / "artifacts" / stage]
        aside = [place.with_name(f".aside-{stage}") for place in places]
        self._end_partial()
        for place, away in zip(places, aside, strict=True):
            if place.exists():
                place.rename(away)
        try:
            yield
        finally:
            for place, away in zip(places, aside, strict=True):
                shutil.rmtree(place, ignore_errors=True)
                if away.exists():
                    away.rename(place)
            self._end_partial()

    def _end_partial(self) -> None:
        for path in (self.root / "partial").glob("*/"):
            shutil.rmtree(path, ignore_errors=True)

    def again(self, stage: str) -> None:
        """Has the workspace forget what a stage made since it was set aside."""
        self._end_partial()
        for place in ("artifacts", "digests/artifacts"):
            shutil.rmtree(self.root / place / stage, ignore_errors=True)

    def newest(self, stage: str) -> Artifact | None:
        return next(reversed(list(Workspace(self.root).artifacts(stage))), None)

    def inside(self, stage: str) -> bool:
        """Whether the stage that was set aside has begun, and has not ended."""
        return any((self.root / "partial").glob("*/output")) and self.newest(stage) is None

    def start(self, stage: str, *changes: str) -> Command:
        given = [part for change in changes for part in ("--set", change)]
        return self.commands.start("run", self.recipe, "--only", stage, *given)


def vote_on_all(root: Path) -> None:
    """A person who prefers the answer whose text comes first in the alphabet."""
    store = Store.open(f"sqlite:///{root}/raters/votes.db")
    row = {"id": uuid.uuid4().hex, "name": "ada", "role": "rater", "state": "active", "created": now(),
           "guidelines_read": 99, "trial_passed": True}  # fmt: skip
    account = str(row["id"])
    with store.write() as connection:
        connection.execute(insert(schema.accounts).values(row))
        open_session(connection, account, "ada")
    while (lease := next_lease(store, account)) is not None:
        texts = {one.id: one.text for one in lease.comparison.responses}
        better = min(lease.order, key=lambda one: texts[one])
        cast_vote(store, account, lease.id, {"outcome": "ranked", "strength": -2 if better == lease.order[0] else 2})
    store.close()


def server_of(root: Path) -> dict[str, Any]:
    """The record of the workspace's own Prefect server."""
    found: dict[str, Any] = json.loads((root / "services" / "prefect.json").read_text("utf-8"))
    return found


def answers(root: Path) -> bool:
    """Whether the workspace's own Prefect server is there."""
    with contextlib.suppress(OSError, ValueError, KeyError, httpx.HTTPError):
        return httpx.get(f"{server_of(root)['url']}/api/health", timeout=5).status_code == 200
    return False


MakeRoom = Callable[..., Room]
