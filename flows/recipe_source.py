"""Where a recipe comes from: a file, or the name of a shipped one."""

from collections.abc import Sequence
from pathlib import Path

from alignment.recipe.resolved import ResolvedRecipe, resolve_recipe

RECIPES = Path(__file__).parent / "recipes"


def find_recipe(given: str) -> Path:
    """The file of a recipe: a path, or the name of a shipped one."""
    path = Path(given)
    shipped = RECIPES / f"{given}.yaml"
    return shipped if not path.is_file() and shipped.exists() else path  # a folder of that name is no recipe


def prepare(given: str, overrides: Sequence[str] = ()) -> ResolvedRecipe:
    """The recipe that a command names, ready to run. Raises InputError with every fault of its file."""
    return resolve_recipe(find_recipe(given), overrides)
