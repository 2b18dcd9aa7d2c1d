"""What of a workspace nothing refers to: artifacts, unfinished stages, and what killed processes left."""

import contextlib
import json
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from alignment.durable_files import TEMPORARY_SUFFIX, remove_tree
from alignment.workspace import USES_FILE, Workspace, is_locked

TEMPORARY = re.compile(rf"\..+\.[0-9a-f]{{32}}{re.escape(TEMPORARY_SUFFIX)}")
LEAST_DAYS = 1.0  # for what has a temporary name: it may be large, and being written


@dataclass(frozen=True, slots=True)
class Waste:
    """Something that nothing refers to. ``artifact``: its name and version, where it is one."""

    path: str  # below the workspace
    bytes: int
    why: str
    artifact: tuple[str, int] | None = None


def waste(workspace: Workspace, *, runs: int, days: float) -> Iterator[Waste]:
    """What neither the newest ``runs`` runs nor a registered version refers to, and unfinished stages older than
    ``days`` that nobody is at work on. What an artifact was made of is kept as long as the artifact."""
    root, kept = workspace.root, referenced(workspace, runs)
    for artifact in workspace.artifacts():
        if (artifact.name, artifact.version) not in kept:
            path = Path("artifacts") / artifact.name / f"v{artifact.version}"
            words = f"no registered version and none of the newest {runs} runs refers to it"
            yield Waste(path.as_posix(), _size(root / path), words, (artifact.name, artifact.version))
    for folder in sorted(
        path for path in root.glob("partial/*") if path.is_dir() and not TEMPORARY.fullmatch(path.name)
    ):
        age = (time.time() - max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))) / 86400
        if age >= days and not is_locked(folder.with_name(f"{folder.name}.lock")):
            yield Waste(
                folder.relative_to(root).as_posix(), _size(folder), f"unfinished, and untouched for {age:.0f} d"
            )
    yield from _left_behind(root, max(days, LEAST_DAYS))


def _left_behind(root: Path, days: float) -> Iterator[Waste]:
    """What processes that were killed were writing, or removing, under a temporary name."""
    for path in sorted(root.rglob(f".*{TEMPORARY_SUFFIX}")):
        if not TEMPORARY.fullmatch(path.name) or any(TEMPORARY.fullmatch(part) for part in path.parts[:-1]):
            continue
        with contextlib.suppress(FileNotFoundError):  # it was renamed meanwhile
            age = (time.time() - path.stat().st_mtime) / 86400
            size = _size(path) if path.is_dir() else path.stat().st_size
            if age >= days:
                yield Waste(
                    path.relative_to(root).as_posix(), size, f"left by a process that was killed {age:.0f} d ago"
                )


def referenced(workspace: Workspace, runs: int) -> set[tuple[str, int]]:
    """(name, version) of the artifacts that are used, and of all that these were made of.

    Used is what the newest ``runs`` runs made or took, what any run takes that is under way or waits for people, and
    what registered versions came from.
    """
    root = workspace.root
    artifacts = {(one.name, one.version): one for one in workspace.artifacts()}
    queue: list[tuple[str, int]] = []
    went_on: set[str] = set()  # recipes of which a newer run ended otherwise than waiting
    for number, folder in enumerate(_newest_runs(root)):
        recipe, statuses = folder.name.rpartition("-")[0], _statuses(folder)
        waits = "waiting" in statuses and recipe not in went_on
        if number < runs or waits or workspace.is_under_way(folder.name):
            queue += [*workspace.uses(folder.name), *_outputs(folder)]
        if statuses and "waiting" not in statuses:
            went_on.add(recipe)
    for path in root.glob("registry/*/v*/lineage.json"):
        record = json.loads(path.read_text("utf-8"))
        queue += [(node["name"], node["version"]) for node in record["lineage"]["nodes"]]
    found: set[tuple[str, int]] = set()
    while queue:
        one = queue.pop()
        if one not in found and one in artifacts:
            found.add(one)
            queue += [(ref.name, ref.version) for ref in artifacts[one].inputs.values()]
    return found


def _newest_runs(root: Path) -> list[Path]:
    """The folders of the runs that made or used something, the newest first: also those that were killed."""
    times: dict[Path, float] = {}
    for path in (*root.glob("runs/*/report.json"), *root.glob(f"runs/*/{USES_FILE}")):
        with contextlib.suppress(FileNotFoundError):
            times[path.parent] = max(times.get(path.parent, 0.0), path.stat().st_mtime)
    return sorted(times, key=lambda folder: times[folder], reverse=True)


def _report(folder: Path) -> dict[str, Any]:
    """A run's report; empty where there is none, as while it is under way."""
    try:
        report: dict[str, Any] = json.loads((folder / "report.json").read_text("utf-8"))
    except FileNotFoundError:
        return {}
    return report


def _outputs(folder: Path) -> list[tuple[str, int]]:
    stages = _report(folder).get("stages", [])
    return [(output["name"], output["version"]) for stage in stages for output in stage["outputs"]]


def _statuses(folder: Path) -> list[str]:
    """How the stages of a run ended: "waiting" where it ended to wait for votes on the answers that it used."""
    return [stage.get("status", "") for stage in _report(folder).get("stages", [])]


def remove(space: Workspace, one: Waste, runs: int) -> bool:
    """Removes what was found, unless somebody has begun to use it since. Says whether it did."""
    folder = space.root / one.path
    if one.artifact is not None:
        name, version = one.artifact
        return space.remove(name, version, unless=lambda: (name, version) in referenced(space, runs))
    if TEMPORARY.fullmatch(folder.name):
        shutil.rmtree(folder) if folder.is_dir() else folder.unlink(missing_ok=True)
        return True
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    try:
        remove_tree(folder)
    finally:
        lock.release()
    return True


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
