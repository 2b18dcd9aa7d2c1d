"""The runs of a workspace: their names, their folders, and how each one stands."""

import json
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from alignment.durable_files import write_text
from alignment.errors import Fault, InputError, suggestion
from alignment.recipe.files import with_absolute_data
from alignment.recipe.load import dump_recipe
from alignment.recipe.resolved import ResolvedRecipe
from alignment.workspace import Workspace
from flows.run_record import RunRecord, read_record

REPORT_FILE = "report.json"
LISTED = 8  # names that an error lists
STOPPED = ("TerminationSignal", "KeyboardInterrupt", "SystemExit")  # what a stage ends with that was told to end
RunState = Literal[
    "running", "elsewhere", "promoted", "refused", "awaits approval", "completed", "waiting", "failed", "interrupted"
]


class RunSummary(BaseModel):
    """A run in a line.

    ``interrupted``: it was told to end, or its process has gone and left no report. ``elsewhere``: it began on another
    machine or in another container, which cannot be seen from here, and has no report yet.
    ``made`` and ``cached`` count stages, the base model and the registry left out; ``version`` is the registered one.
    """

    run: str
    recipe: str
    state: RunState
    started: datetime
    seconds: float | None
    made: int
    cached: int
    version: str | None
    folder: Path


def claim_run(workspace: Workspace, recipe: str) -> str:
    """Takes the next free name, ``<recipe>-<n>``, by making its folder: two runs never have the same one."""
    home = workspace.folder("runs")
    pattern = re.compile(rf"{re.escape(recipe)}-(\d+)")
    number = max((int(match[1]) for path in home.iterdir() if (match := pattern.fullmatch(path.name))), default=0)
    while True:
        number += 1
        try:
            (home / f"{recipe}-{number}").mkdir()
        except FileExistsError:  # another run was faster
            continue
        return f"{recipe}-{number}"


def keep_recipe(path: Path, resolved: ResolvedRecipe, workspace: Workspace) -> None:
    """Writes a recipe as it ran, to be run again from any folder: its files are named by absolute paths.

    A file inside the workspace is named from the recipe's own folder instead: a copied workspace then reads its own.
    """
    root, here = workspace.root.resolve(), path.parent.resolve()

    def relative(value: Path) -> Path:
        return Path(os.path.relpath(value, here)) if value.is_absolute() and value.is_relative_to(root) else value

    model = resolved.recipe.model
    changed = {"base": str(relative(Path(model.base)))} if Path(model.base).is_absolute() else {}
    if model.chat_template is not None:
        changed["chat_template"] = str(relative(Path(model.chat_template)))
    whole = with_absolute_data(resolved.recipe, {name: relative(file) for name, file in resolved.data.items()})
    write_text(path, dump_recipe(whole.model_copy(update={"model": model.model_copy(update=changed)})))


def run_folders(workspace: Workspace) -> list[Path]:
    """The folders of all runs, the one that began last first. Makes nothing."""
    home = workspace.root.resolve() / "runs"
    folders = [path for path in home.iterdir() if (path / "recipe.yaml").exists()] if home.is_dir() else []
    return sorted(folders, key=lambda path: (path / "recipe.yaml").stat().st_mtime_ns, reverse=True)


def find_run(workspace: Workspace, name: str | None, *, reported: bool = True) -> Path:
    """The folder of a run, by name or the newest; of one with a report, if not told otherwise.

    Raises InputError, with the run that was probably meant, where there is none.
    """
    folders = [path for path in run_folders(workspace) if not reported or (path / REPORT_FILE).exists()]
    for path in folders:
        if name in (None, path.name):
            return path
    names = [path.name for path in folders]
    what = "report of run" if reported else "run"
    problem = f"no {what} {name!r} in {workspace.root}" if name else f"no run in {workspace.root} has a report"
    remedy = suggestion(name or "", names)
    if remedy.startswith("known") and names:
        remedy = f"the newest are: {', '.join(names[:LISTED])}"
    raise InputError([Fault(problem, remedy if names else "run a recipe in it first, or name another with -w")])


def read_report(folder: Path) -> dict[str, Any] | None:
    """A run's report as it was written, by whichever version; None where there is none (yet)."""
    try:
        report: dict[str, Any] = json.loads((folder / REPORT_FILE).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return report


def summarise(folder: Path) -> RunSummary:
    """How a run stands."""
    report, record = read_report(folder), read_record(folder)
    began = datetime.fromtimestamp((folder / "recipe.yaml").stat().st_mtime, UTC)
    state = _state(report, record)
    registered = (report or {}).get("registered")
    stages = [one for one in (report or {}).get("stages", ()) if one["kind"] not in ("base", "register")]
    ended = [one for one in stages if one["status"] == "completed"]
    return RunSummary(
        run=folder.name,
        recipe=report["recipe_name"] if report else folder.name.rpartition("-")[0],
        state=state,
        started=datetime.fromisoformat(report["started"]) if report else record.started if record else began,
        seconds=report["seconds"] if report else None,
        made=sum(not one["cached"] for one in ended),
        cached=sum(one["cached"] for one in ended),
        version=f"{registered['name']}/{registered['version']}" if registered else None,
        folder=folder,
    )


def _state(report: Mapping[str, Any] | None, record: RunRecord | None) -> RunState:
    if report is None:
        if record is not None and not record.process.here:
            return "elsewhere"
        return "running" if record is not None and record.process.alive else "interrupted"
    statuses = {stage["status"] for stage in report["stages"]}
    if "failed" in statuses:
        told = any(stage["error"].startswith(STOPPED) for stage in report["stages"])
        return "interrupted" if told else "failed"
    if "waiting" in statuses:
        return "waiting"
    gate = report.get("gate")
    if gate is None:
        return "completed"
    if gate["passed"]:
        return "promoted"
    if gate.get("waits"):
        return "awaits approval"
    return "refused"
