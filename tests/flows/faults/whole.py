"""What must hold of a workspace whose last run ended whole, whatever happened before."""

import contextlib
import json
import re
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from alignment.durable_files import file_digest, folder_digest
from alignment.workspace import Workspace
from tests.flows.faults.room import server_of

LITTER = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")  # what `rlhf gc` removes, and nobody reads
TOLD_WITHIN = 30.0  # seconds
PROVENANCE = ("README.md", "lineage.json")  # of a version: they name the run and its time


def version_of(root: Path) -> dict[str, str]:
    """The files of the first version, by name, but for those that tell when it was made."""
    folder = root / "registry" / "policy" / "v1"
    return {path.name: file_digest(path) for path in sorted(folder.glob("*")) if path.name not in PROVENANCE}


def digests_of(root: Path) -> dict[str, str]:
    """The digest of each stage's newest artifact."""
    return {artifact.name: artifact.digest for artifact in Workspace(root).artifacts()}


def problems(root: Path, digests: dict[str, str], version: dict[str, str]) -> list[str]:
    """Everything that is not as after an undisturbed run, whose artifacts and version are given."""
    return [*_artifacts(root, digests), *_files(root), *_registry(root, version), *_settled(root)]


def _artifacts(root: Path, digests: dict[str, str]) -> Iterator[str]:
    found: dict[str, list[str]] = {}
    for artifact in Workspace(root).artifacts():
        found.setdefault(artifact.name, []).append(artifact.digest)
        if folder_digest(Path(artifact.path)) != artifact.digest:
            yield f"{artifact.ref()} is not what was made"
    if found != {name: [digest] for name, digest in digests.items()}:
        yield f"artifacts {found}, and undisturbed {digests}"


def _files(root: Path) -> Iterator[str]:
    for path in root.rglob("*"):
        if path.suffix == ".tmp" and not LITTER.fullmatch(path.name):
            yield f"{path} has a temporary name that nobody removes"
        if ".tmp" in str(path.relative_to(root)) or not path.is_file():
            continue
        with contextlib.suppress(FileNotFoundError):  # of a service that is at work
            if path.suffix in (".json", ".jsonl"):
                text = path.read_text("utf-8")
                for part in text.splitlines() if path.suffix == ".jsonl" else [text]:
                    try:
                        json.loads(part)
                    except ValueError:
                        yield f"{path} is half written: {part[-80:]!r}"
    for name in ("mlflow.db", "prefect/prefect.db"):
        with contextlib.closing(sqlite3.connect(f"file:{root / name}?mode=ro", uri=True, timeout=60)) as database:
            if (said := database.execute("PRAGMA quick_check").fetchone()[0]) != "ok":
                yield f"{name}: {said}"
    yield from (f"{path} is left of a stage" for path in (root / "partial").glob("*/"))


def _registry(root: Path, version: dict[str, str]) -> Iterator[str]:
    with contextlib.closing(sqlite3.connect(f"file:{root}/mlflow.db?mode=ro", uri=True, timeout=60)) as database:
        versions = database.execute("SELECT name, version FROM model_versions").fetchall()
        aliases = database.execute("SELECT alias, name, version FROM registered_model_aliases").fetchall()
    if versions != [("policy", 1)] or aliases != [("champion", "policy", 1)]:
        yield f"versions {versions}, aliases {aliases}"
    if (found := version_of(root)) != version:
        yield f"the version's files are {sorted(found.items() ^ version.items())} off"


def _settled(root: Path) -> list[str]:
    """What is still wrong when the server has had time to be told: the last words of a run may be on their way."""
    deadline = time.monotonic() + TOLD_WITHIN
    while found := list(_said(root)):
        if time.monotonic() > deadline:
            break
        time.sleep(0.5)
    return found


def _said(root: Path) -> Iterator[str]:
    """What the server was told, and what is left that nobody answers for."""
    for folder in ("services/outbox", "services/processes"):
        yield from (f"{path} is left" for path in (root / folder).glob("*.json"))
    yield from (f"{path} is left" for path in (root / "metrics").glob("*.prom"))
    body: dict[str, Any] = {"flow_runs": {"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}}}
    reply = httpx.post(f"{server_of(root)['url']}/api/flow_runs/filter", json=body, timeout=60).raise_for_status()
    mine = [run for run in reply.json() if str(root) in json.dumps(run["parameters"])]
    yield from (f"the run {run['name']} stays {run['state_type']}" for run in mine)
