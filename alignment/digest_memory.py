"""Digests that are remembered: hashing large weights takes minutes, looking at sizes and times none.

A digest is remembered with the relative name, size, time of modification and time of change of every file. Where one of
them differs the files are read again, so damage that a file system shows in its times is always found. What is
remembered may be lost or removed at any time.
"""

import contextlib
import json
from pathlib import Path

from alignment.digests import digest_of
from alignment.durable_files import ARTIFACT_FILE, folder_digest, write_text


def remembered_digest(folder: Path, memory: Path) -> str:
    """:func:`alignment.durable_files.folder_digest` of a folder, read from ``memory`` where its files are as they were.

    Raises FileNotFoundError where there is no such folder.
    """
    stamp = _stamp(folder)
    try:
        known = json.loads(memory.read_text("utf-8"))
        if known["stamp"] == stamp:
            return str(known["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return remember_digest(folder, folder_digest(folder), memory, stamp)


def is_remembered(folder: Path, digest: str, memory: Path) -> bool:
    """Whether the folder's files are as they were when ``digest`` was remembered of them."""
    try:
        known = json.loads(memory.read_text("utf-8"))
        return bool(known["digest"] == digest and known["stamp"] == _stamp(folder))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def remember_digest(folder: Path, digest: str, memory: Path, stamp: str | None = None) -> str:
    """Remembers a digest that was just computed of a folder whose files had ``stamp`` before. Returns the digest."""
    after = _stamp(folder)
    if stamp is None or stamp == after:  # else somebody wrote into it meanwhile: the digest may be of neither state
        with contextlib.suppress(OSError):  # a workspace that cannot be written to is read all the same
            write_text(memory, json.dumps({"digest": digest, "stamp": after}) + "\n")
    return digest


def _stamp(folder: Path) -> str:
    """What a file system says of a folder's files without reading them, as one digest."""
    if not folder.is_dir():
        raise FileNotFoundError(folder)
    rows = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != ARTIFACT_FILE):
        status = path.stat()
        rows.append([path.relative_to(folder).as_posix(), status.st_size, status.st_mtime_ns, status.st_ctime_ns])
    return digest_of(rows)
