"""The runs of a workspace: their names and folders."""

import os
import re
from pathlib import Path

from alignment.durable_files import write_text
from alignment.errors import Fault, InputError
from alignment.recipe.files import with_absolute_data
from alignment.recipe.load import dump_recipe
from alignment.recipe.resolved import ResolvedRecipe
from alignment.workspace import Workspace


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


def find_run(workspace: Workspace, name: str | None) -> Path:
    """The folder of a run with a report, by name or the newest. Raises InputError where there is none."""
    reports = sorted(workspace.folder("runs").glob("*/report.json"), key=lambda path: path.stat().st_mtime)
    for path in reversed(reports):
        if name in (None, path.parent.name):
            return path.parent
    known = ", ".join(path.parent.name for path in reports) or "none"
    raise InputError([Fault(f"no report of run {name!r}" if name else "no run has a report", f"the runs are: {known}")])
