"""A workspace as one file, and the way back: every file under its digest, databases as of one moment."""

import contextlib
import hashlib
import io
import json
import shutil
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from alignment.durable_files import TEMPORARY_SUFFIX, file_digest, rename_synced, temporary_beside
from alignment.errors import Fault, InputError
from flows.backups.sources import (
    MLFLOW_FILE,
    PREFECT_FILE,
    VOTES,
    check_parts,
    copied_votes,
    elsewhere,
    open_runs,
    restored_votes,
)
from flows.services.server_outbox import post, state_message

KEPT = (  # not what is partial, and no logs
    "artifacts", "models", "registry", "runs", "sweeps", "raters", "answers", "mlruns", "mlartifacts", MLFLOW_FILE,
    PREFECT_FILE,
    "services/announced", "services/approvals",
)  # fmt: skip
UNUSED_VOTES = "raters/votes-not-in-use.db"  # in the workspace, while the raters' store was another
RESTORED = "its workspace was restored from a backup that was made while it ran"
MANIFEST = "backup.json"
SQLITE = b"SQLite format 3\0"
BESIDE_DATABASES = ("-wal", "-shm", "-journal")  # what is in them is in the copy that SQLite makes


def write_backup(root: Path, target: Path, *, store: str | None = None, without: Sequence[str] = ()) -> int:
    """Writes a workspace into one file, whole or not at all. Returns how many files are in it.

    See :func:`flows.commands.backup.backup_command`.
    """
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
    return len(digests)


def _left_out(name: str, without: Sequence[str]) -> bool:
    return (
        ("votes" in without and name == VOTES)
        or ("prefect" in without and name.startswith("prefect/"))
        or ("mlflow" in without and name.startswith(("mlflow.db", "mlruns/", "mlartifacts/")))
    )


def restore_backup(source: Path, workspace: Path, *, store: str | None = None) -> tuple[int, dict[str, int] | None]:
    """Makes a workspace from a backup. Returns how many files it has, and the rows of votes that went elsewhere.

    See :func:`flows.commands.backup.restore_command`.
    """
    if not source.is_file():  # a device would be read without end
        problem = "it is no file" if source.exists() else "no such file"
        raise InputError([Fault(problem, "give what `rlhf backup` wrote", file=str(source))])
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
    return len(known), rows


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
