"""What is said where nothing more can be written: which disk is full, and what to do. Never the words of a library."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alignment.errors import StageError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
WORDS = ("no space left on device", "disk is full", "disk quota exceeded", "file too large")
LEAST_FREE = 1 << 16  # bytes: with less, whatever failed to write failed for this


def full_disk(error: BaseException, folder: Path) -> str | None:
    """What to tell a user whose disk is full, in a line; None where ``error`` came of something else.

    Not every library passes the kernel's answer on (torch says "file write failed"): a disk that has no room at the
    moment of the error counts as well. ``folder`` is what was written to, where the error does not say.
    """
    seen: set[int] = set()
    causes: list[BaseException] = [error]
    for cause in causes:
        seen.add(id(cause))
        causes += [one for one in (cause.__cause__, cause.__context__) if one is not None and id(one) not in seen]
    named = [one for one in causes if isinstance(one, OSError) and one.errno in FULL]
    said = any(words in str(one).lower() for one in causes for words in WORDS)
    if not named and not said and _free(folder) >= LEAST_FREE:
        return None
    place = next((one.filename for one in named if one.filename is not None), folder)
    why = next((os.strerror(one.errno) for one in named if one.errno is not None), os.strerror(errno.ENOSPC))
    return (
        f"{why}: {os.fsdecode(place)} could not be written; make room on its disk (`rlhf gc` lists what nothing refers "
        "to) and give the same command again: finished stages and the last whole checkpoint are kept"
    )


def _free(folder: Path) -> int:
    """Bytes that this user may still write beside ``folder``'s files; none where no more files are possible."""
    try:
        found = os.statvfs(next(path for path in (folder, *folder.parents) if path.exists()))
    except OSError:
        return LEAST_FREE
    return 0 if found.f_files and not found.f_favail else found.f_bavail * found.f_frsize


@contextmanager
def naming_a_full_disk(name: str, folder: Path) -> Iterator[None]:
    """Has whatever fails in here, because ``folder``'s disk is full, be a StageError that says so."""
    try:
        yield
    except StageError:
        raise
    except Exception as error:
        if (problem := full_disk(error, folder)) is None:
            raise
        raise StageError(f"{name}: {problem}") from error
