"""Where a recipe comes from: a file, or the name of a shipped one."""

from pathlib import Path
from typing import TYPE_CHECKING

from alignment.models.resolve import resolve_model
from alignment.recipe.load import load_recipe
from alignment.recipe.recipe import Recipe

if TYPE_CHECKING:
    pass

RECIPES = Path(__file__).parent / "recipes"


def find_recipe(given: str) -> Path:
    """The file of a recipe: a path, or the name of a shipped one."""
    path = Path(given)
    shipped = RECIPES / f"{given}.yaml"
    return shipped if not path.is_file() and shipped.exists() else path  # a folder of that name is no recipe


def prepare(given: str, overrides: list[str]) -> tuple[Recipe, Path]:
    """The recipe with its model's paths made absolute, and its file. Raises InputError with every fault."""
    path = find_recipe(given)
    recipe = load_recipe(path, overrides)
    return recipe.model_copy(update={"model": resolve_model(recipe.model, recipe.resources, path)}), path
