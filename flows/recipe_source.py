"""Where a recipe comes from: a file, or the name of a shipped one."""

from collections.abc import Sequence
from pathlib import Path

from alignment.errors import Fault, InputError, suggestion
from alignment.recipe.resolved import ResolvedRecipe, resolve_recipe

RECIPES = Path(__file__).parent / "recipes"


def shipped_recipes() -> list[str]:
    """The names of the recipes that come with the program."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def find_recipe(given: str) -> Path:
    """The file of a recipe: a path, or the name of a shipped one.

    Raises InputError, with the recipe that was probably meant, where there is neither.
    """
    path = Path(given)
    shipped = RECIPES / f"{given}.yaml"
    if path.is_file():
        return path
    if shipped.is_file():  # a folder of that name is no recipe
        return shipped
    problem = f"{given!r} is a folder, not a recipe" if path.is_dir() else f"no recipe {given!r}"
    beside = [str(path.parent / file.name) for file in _yaml_files(path.parent)]
    named = shipped_recipes() if path.parent == Path() else []
    raise InputError([Fault(problem, suggestion(given, [*named, *beside]))])


def _yaml_files(folder: Path) -> list[Path]:
    """The YAML files of a folder, by name; none where there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(file for file in folder.iterdir() if file.suffix in (".yaml", ".yml") and file.is_file())


def prepare(given: str, overrides: Sequence[str] = ()) -> ResolvedRecipe:
    """The recipe that a command names, ready to run.

    Raises InputError with every fault of its file, and with those of its data and model that can be told all the same.
    """
    path = find_recipe(given)
    try:
        return resolve_recipe(path, overrides)
    except InputError as error:
        from alignment.checks.salvage import other_faults  # takes its time, and most recipes are right

        raise InputError([*error.faults, *other_faults(path, overrides)]) from None
