"""Keeping a workspace: a backup of it as one file, the way back, and the removal of what nothing refers to."""

import contextlib
import hashlib
import io
import json
import re
import shutil
import sqlite3
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from alignment.durable_files import TEMPORARY_SUFFIX, file_digest, remove_tree, rename_synced, temporary_beside
from alignment.errors import Fault, InputError
from alignment.workspace import USES_FILE, Workspace, is_locked
from flows.commands.backup_sources import (
    MLFLOW_FILE,
    PREFECT_FILE,
    VOTES,
    check_parts,
    copied_votes,
    elsewhere,
    open_runs,
    restored_votes,
)
from flows.console import PlainConsole
from flows.services.process_records import post, state_message

TEMPORARY = re.compile(rf"\..+\.[0-9a-f]{{32}}{re.escape(TEMPORARY_SUFFIX)}")
LEAST_DAYS = 1.0  # for what has a temporary name: it may be large, and being written
KEPT = (  # not what is partial, and no logs
    "artifacts", "models", "registry", "runs", "raters", "answers", "mlruns", "mlartifacts", MLFLOW_FILE, PREFECT_FILE,
    "services/announced", "services/approvals",
)  # fmt: skip
UNUSED_VOTES = "raters/votes-not-in-use.db"  # in the workspace, while the raters' store was another
RESTORED = "its workspace was restored from a backup that was made while it ran"
MANIFEST = "backup.json"
SQLITE = b"SQLite format 3\0"
BESIDE_DATABASES = ("-wal", "-shm", "-journal")  # what is in them is in the copy that SQLite makes


def backup_command(
    workspace: Path, target: Path, *, as_json: bool, store: str | None = None, without: Sequence[str] = ()
) -> None:
    """Writes a workspace into one file, whole or not at all. Databases are copied as of one moment, also in use.

    The raters' votes come from ``store`` (or ``RLHF_STORE``), wherever that is. ``without`` names parts (votes,
    prefect, mlflow) that are left out. Raises InputError where a part is on a server that cannot be copied from here.
    """
    root = _existing(workspace)
    check_parts(without)
    if target.exists():
        raise InputError([Fault("the file exists", "give another name, or remove it first", file=str(target))])
    if faults := elsewhere(root, without):
        raise InputError(faults)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = temporary_beside(target)
    digests: dict[str, str] = {}
    try:
        partial.touch(mode=0o600)  # accounts of raters, and what Prefect's blocks keep, are in it
        with tarfile.open(partial, "w") as archive, tempfile.TemporaryDirectory() as scratch:
            votes = None if "votes" in without else copied_votes(root, store, Path(scratch))
            for path in _files(root):
                name = path.relative_to(root).as_posix()
                if _left_out(name, without):
                    continue
                if name == VOTES and votes is not None:
                    name = UNUSED_VOTES
                digests[name] = _add(archive, _still(path, Path(scratch) / "copy.db"), name)
            if votes is not None:
                digests[VOTES] = _add(archive, votes, VOTES)
            text = json.dumps({"files": digests, "without": list(without)}, indent=1, sort_keys=True).encode()
            entry = tarfile.TarInfo(MANIFEST)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text))
        rename_synced(partial, target)
    finally:
        with contextlib.suppress(OSError):  # what went wrong before is what is to be told
            partial.unlink(missing_ok=True)
    said: dict[str, object] = {"file": str(target), "files": len(digests), "bytes": target.stat().st_size}
    _say(said | ({"without": ", ".join(without)} if without else {}), as_json)


def _left_out(name: str, without: Sequence[str]) -> bool:
    return (
        ("votes" in without and name == VOTES)
        or ("prefect" in without and name.startswith("prefect/"))
        or ("mlflow" in without and name.startswith(("mlflow.db", "mlruns/", "mlartifacts/")))
    )


def restore_command(source: Path, workspace: Path, *, as_json: bool, store: str | None = None) -> None:
    """Makes a workspace from a backup, whole or not at all; every file is held against its digest first.

    Where ``store`` (or ``RLHF_STORE``) names a database of its own, the votes go there: it has to be empty.
    """
    if workspace.exists() and any(workspace.iterdir()):
        raise InputError([Fault("the workspace is not empty", "restore into a new folder", file=str(workspace))])
    partial = temporary_beside(workspace)
    workspace.parent.mkdir(parents=True, exist_ok=True)
    try:
        try:
            with tarfile.open(source) as archive:
                archive.extractall(partial, filter="data")  # no links that lead out, no devices
        except (OSError, tarfile.TarError) as error:
            raise InputError([Fault(f"not a whole backup: {error}", "give another", file=str(source))]) from None
        known = _manifest(partial, source)
        wrong = _differences(partial, known)
        if wrong:
            raise InputError([Fault(what, "give another backup", file=f"{source}:{name}") for name, what in wrong])
        (partial / MANIFEST).unlink()
        rows = restored_votes(partial / VOTES, workspace, store)
        if rows is not None:
            for name in (VOTES, *(VOTES + ending for ending in BESIDE_DATABASES)):
                (partial / name).unlink(missing_ok=True)  # they are in the database now, counted
        for flow_run in open_runs(partial / PREFECT_FILE):
            post(partial, state_message(flow_run, "CRASHED", "Crashed", RESTORED, force=False))
        with contextlib.suppress(FileNotFoundError):
            workspace.rmdir()  # empty
        rename_synced(partial, workspace)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    said: dict[str, object] = {"workspace": str(workspace), "files": len(known)}
    _say(said | ({"votes": rows["votes"], "rows": sum(rows.values())} if rows is not None else {}), as_json)


@dataclass(frozen=True, slots=True)
class Waste:
    """Something that nothing refers to. ``artifact``: its name and version, where it is one."""

    path: str  # below the workspace
    bytes: int
    why: str
    artifact: tuple[str, int] | None = None


def gc_command(workspace: Path, *, runs: int, days: float, remove: bool, as_json: bool) -> None:
    """Lists, and with ``remove`` removes, artifacts and unfinished stages that nothing refers to."""
    space = Workspace(_existing(workspace))
    found = list(waste(space, runs=runs, days=days))
    if remove:
        found = [one for one in found if _remove(space, one, runs)]
    total = sum(one.bytes for one in found)
    if as_json:
        print(json.dumps({"removed": remove, "bytes": total, "found": [_row(one) for one in found]}, indent=2))
        return
    console = PlainConsole()
    for one in found:
        console.print(f"{one.bytes / 1e6:>10.1f} MB  {one.path}: {one.why}")
    words = "removed" if remove else "to be removed by the same command with --yes"
    console.print(f"{total / 1e6:.1f} MB in {len(found)} folders {words}" if found else "nothing to remove")


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


def _remove(space: Workspace, one: Waste, runs: int) -> bool:
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


def _row(one: Waste) -> dict[str, object]:
    return {"path": one.path, "bytes": one.bytes, "why": one.why}


def _existing(workspace: Path) -> Path:
    if not workspace.is_dir():
        raise InputError([Fault("no such workspace", "name one with --workspace", file=str(workspace))])
    return workspace.resolve()


def _files(root: Path) -> Iterator[Path]:
    for name in KEPT:
        top = root / name
        for path in [top] if top.is_file() else sorted(top.rglob("*")):
            unwanted = path.name.endswith((".lock", *BESIDE_DATABASES)) or ".partial" in path.parts
            unwanted = unwanted or any(part.endswith(TEMPORARY_SUFFIX) for part in path.relative_to(root).parts)
            if path.is_file() and not path.is_symlink() and not unwanted:
                yield path


def _still(path: Path, copy: Path) -> Path:
    """A file that nobody changes while it is read: a database's copy by SQLite, anything else as it is."""
    with path.open("rb") as file:
        if file.read(len(SQLITE)) != SQLITE:
            return path
    copy.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(path)) as live, contextlib.closing(sqlite3.connect(copy)) as still:
        live.backup(still)
    return copy


def _add(archive: tarfile.TarFile, source: Path, name: str) -> str:
    """Adds a file, and returns the SHA-256 of exactly the bytes that were added."""
    data = _Digesting(source)
    entry = archive.gettarinfo(str(source), arcname=name)
    with data:
        archive.addfile(entry, data)
    return data.digest.hexdigest()


class _Digesting(io.FileIO):
    """A file that digests what is read of it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "rb")
        self.digest = hashlib.sha256()

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(-1 if size is None else size) or b""
        self.digest.update(data)
        return data


def _manifest(folder: Path, source: Path) -> dict[str, str]:
    try:
        known: dict[str, str] = json.loads((folder / MANIFEST).read_text("utf-8"))["files"]
    except (OSError, ValueError, KeyError):
        raise InputError([Fault(f"it has no {MANIFEST}", "give what `rlhf backup` wrote", file=str(source))]) from None
    return known


def _differences(folder: Path, known: dict[str, str]) -> list[tuple[str, str]]:
    here = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {MANIFEST}
    found = [(name, "the file is missing") for name in sorted(known.keys() - here)]
    found += [(name, "the file was added") for name in sorted(here - known.keys())]
    found += [
        (name, "the file has changed")
        for name in sorted(here & known.keys())
        if file_digest(folder / name) != known[name]
    ]
    return found


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _say(values: dict[str, object], as_json: bool) -> None:
    if as_json:
        print(json.dumps(values))
    else:
        PlainConsole().print(", ".join(f"{name} {value}" for name, value in values.items()))
