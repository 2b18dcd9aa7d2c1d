"""Recipes that a run leaves in its workspace, to be run again from there."""

import os
from collections.abc import Mapping
from pathlib import Path

from alignment.loading import dump_recipe, with_absolute_data
from alignment.recipe import Recipe
from alignment.workspace import Workspace, write_text


def write_recipe(path: Path, recipe: Recipe, data: Mapping[str, Path], workspace: Workspace) -> None:
    """Writes a recipe as it ran. Its files are named by absolute paths, so that it runs from any folder.

    A file inside the workspace is named from the recipe's own folder instead: a copied workspace then reads its own.
    """
    root, here = workspace.root.resolve(), path.parent.resolve()

    def relative(value: Path) -> Path:
        return Path(os.path.relpath(value, here)) if value.is_absolute() and value.is_relative_to(root) else value

    model = recipe.model
    changed = {"base": str(relative(Path(model.base)))} if Path(model.base).is_absolute() else {}
    if model.chat_template is not None:
        changed["chat_template"] = str(relative(Path(model.chat_template)))
    whole = with_absolute_data(recipe, {name: relative(file) for name, file in data.items()})
    write_text(path, dump_recipe(whole.model_copy(update={"model": model.model_copy(update=changed)})))
