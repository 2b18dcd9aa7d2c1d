"""Where a recipe comes from: a file, or the name of a shipped one."""

from collections.abc import Sequence
from pathlib import Path

from alignment.errors import Fault, InputError
from alignment.recipe.resolved import ResolvedRecipe, resolve_recipe, resolve_salvaged

RECIPES = Path(__file__).parent / "recipes"


def find_recipe(given: str) -> Path:
    """The file of a recipe: a path, or the name of a shipped one."""
    path = Path(given)
    shipped = RECIPES / f"{given}.yaml"
    return shipped if not path.is_file() and shipped.exists() else path  # a folder of that name is no recipe


def prepare(given: str, overrides: Sequence[str] = ()) -> ResolvedRecipe:
    """The recipe that a command names, ready to run.

    Raises InputError with every fault of its file, and with those of its data and model that can be told all the same.
    """
    path = find_recipe(given)
    try:
        return resolve_recipe(path, overrides)
    except InputError as error:
        raise InputError([*error.faults, *_others(path, overrides)]) from None


def _others(path: Path, overrides: Sequence[str]) -> list[Fault]:
    """The faults of what a recipe says beside its structural ones."""
    left = resolve_salvaged(path, overrides)
    if left is None:
        return []
    from alignment.checks.recipe import check_recipe  # takes its time, and most recipes are right

    resolved, salvaged = left
    return [fault for fault in check_recipe(resolved) if salvaged.tells(fault)]
