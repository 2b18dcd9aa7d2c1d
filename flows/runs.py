"""The runs of a workspace: their names and folders."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from alignment.errors import Fault, InputError
from alignment.workspace import Workspace

if TYPE_CHECKING:
    pass


def next_run_name(workspace: Workspace, recipe: str) -> str:
    """``<recipe>-<n>``, one more than the newest."""
    taken = [int(m[1]) for p in workspace.folder("runs").iterdir() if (m := re.fullmatch(rf"{recipe}-(\d+)", p.name))]
    return f"{recipe}-{max(taken, default=0) + 1}"


def find_run(workspace: Workspace, name: str | None) -> Path:
    """The folder of a run with a report, by name or the newest. Raises InputError where there is none."""
    reports = sorted(workspace.folder("runs").glob("*/report.json"), key=lambda path: path.stat().st_mtime)
    for path in reversed(reports):
        if name in (None, path.parent.name):
            return path.parent
    known = ", ".join(path.parent.name for path in reports) or "none"
    raise InputError([Fault(f"no report of run {name!r}" if name else "no run has a report", f"the runs are: {known}")])
