"""What a command says when a library raises: one line, the exit code, and where the traceback is kept."""

import errno
import os
import tempfile
import time
import traceback
from contextvars import ContextVar
from pathlib import Path

from alignment.errors import Fault, InputError
from alignment.workspace import Workspace
from flows.full_disk import full_disk

_INPUT_ERRNOS = (errno.EACCES, errno.EPERM, errno.EROFS)  # of files: what the user may mend, and nobody else
_FORBIDDEN = "?#\0"  # in a workspace's path: the databases in it are named by addresses, which these cut off
_NOT_A_DATABASE = ("file is not a database", "out-of-date database schema", "can't locate revision", "malformed")
_opened: ContextVar[Path | None] = ContextVar("opened", default=None)


def open_workspace(path: Path) -> Workspace:
    """The workspace of a command, made where it is missing.

    Raises:
        InputError: its path has a character that no database's address can hold, or nothing can be written there.
    """
    root = path.resolve()
    found = sorted({character for character in str(root) if character in _FORBIDDEN})
    if found:
        problem = f"the path has {' and '.join(map(repr, found))}, which cuts off the addresses of the databases in it"
        raise InputError([Fault(problem, "give another folder with --workspace", file=str(root))])
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        problem = f"the workspace cannot be written: {error.strerror or error}"
        raise InputError([Fault(problem, "give another folder with --workspace", file=str(root))]) from None
    _opened.set(root)
    return Workspace(root)


def explain(error: Exception) -> tuple[str, int]:
    """One line about an error that nobody foresaw, and the exit code: 2 where it is the input's, else 1."""
    if (problem := full_disk(error, _opened.get() or Path.cwd())) is not None:
        return problem, 1
    line = " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno in _INPUT_ERRNOS and error.filename:
        return f"{error.filename}: {error.strerror}; give a place that can be read and written", 2
    if any(words in line.lower() for words in _NOT_A_DATABASE):
        kept = f" ({_opened.get()})" if _opened.get() else ""
        remedy = "move it away, or bring it up to date with the version that wrote it"
        return f"a database of the workspace{kept} is damaged, or another version's: {line[:200]}; {remedy}", 2
    return f"{type(error).__name__}: {line[:400]}" if line else type(error).__name__, 1


def keep_traceback(error: BaseException, folder: Path | None = None) -> str:
    """Writes an error's traceback to a file and says where it is. Without a folder or a workspace: a temporary file."""
    text = "".join(traceback.format_exception(error))
    name = f"error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    root = _opened.get()
    for place in (folder, root and root / "services", Path(tempfile.gettempdir())):
        if place is None:
            continue
        try:
            place.mkdir(parents=True, exist_ok=True)
            (place / name).write_text(text, "utf-8", errors="backslashreplace")
        except OSError:
            continue
        return f"the traceback is in {place / name}"
    return "the traceback could not be written anywhere"
