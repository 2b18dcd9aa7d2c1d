"""Files that survive what may happen to a machine: whole or not at all, and on the disk before they have their name.

A name that is written here is complete after SIGKILL (temporary name, then rename) and after a power cut (the contents
are synced before the rename, the folder's entry after it). Temporary names are random: processes of two containers
that share a volume have the same process ids.
"""

import contextlib
import hashlib
import os
import shutil
import stat
import uuid
from pathlib import Path

ARTIFACT_FILE = "artifact.json"
TEMPORARY_SUFFIX = ".tmp"
WRITE_BITS = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH


def temporary_beside(path: Path) -> Path:
    """A name in the same folder that no other process of any machine takes, for what will be renamed to ``path``."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")


def write_text(path: Path, text: str, *, synced: bool = True) -> None:
    """Writes a whole UTF-8 file or none of it; folders are made where they are missing.

    ``synced=False`` leaves out the wait for the disk (about 4 ms): for what is worthless after a power cut, such as
    a running process's figures.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        with temporary.open("x", encoding="utf-8", newline="") as file:
            file.write(text)
            if synced:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        _remove_quietly(temporary)
        raise
    if synced:
        sync(path.parent)


def sync(path: Path) -> None:
    """Waits until a file's contents, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | (os.O_DIRECTORY if path.is_dir() else 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Waits until every file and folder below ``folder``, and it itself, is on the disk. Links are not followed."""
    for root, _folders, names in os.walk(folder, topdown=False):
        for path in (Path(root, name) for name in names):
            if path.is_file() and not path.is_symlink():
                sync(path)
        sync(Path(root))


def rename_synced(source: Path, target: Path) -> None:
    """Renames a file or folder whose contents are on the disk first, and whose new name is there after it.

    Raises OSError where ``target`` is a folder that is not empty: what is published is never replaced.
    """
    if source.is_dir():
        sync_tree(source)
    else:
        sync(source)
    source.rename(target)
    for parent in {source.parent, target.parent}:
        sync(parent)


def make_read_only(folder: Path) -> None:
    """Takes the right to write from every file below ``folder``.

    Folders keep theirs: what is written into an immutable folder later shows in its digest, and a workspace can still
    be removed by the user whose it is.
    """
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(path.stat().st_mode & ~WRITE_BITS)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(folder: Path) -> str:
    """SHA-256 over the relative names and contents of a folder's files, `artifact.json` left out."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != ARTIFACT_FILE):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{file_digest(path)}\n".encode())
    return digest.hexdigest()


def remove_tree(folder: Path) -> None:
    """Removes a folder, also one of which parts are gone already. Its name goes first: no half of it is ever seen."""
    aside = temporary_beside(folder)
    try:
        folder.rename(aside)
    except FileNotFoundError:
        return
    shutil.rmtree(aside)


def _remove_quietly(path: Path) -> None:
    with contextlib.suppress(OSError):  # the error that led here is the one to be told of
        path.unlink(missing_ok=True)
