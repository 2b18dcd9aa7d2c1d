"""A recipe made ready once for all that follow: absolute files, this machine's precision, its digest."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from alignment.precision import natural_precision
from alignment.recipe.base import Settings
from alignment.recipe.files import EMBEDDED_PREFIX, beside, is_path, resolve_data
from alignment.recipe.load import load_recipe, recipe_digest
from alignment.recipe.recipe import Recipe
from alignment.recipe.resources import Resources
from alignment.recipe.run_settings import ModelSettings, Precision


class ResolvedRecipe(Settings):
    """A recipe as it runs.

    Attributes:
        recipe: with the model's paths absolute, and its precision settled.
        path: the file that it was read from, whose lines faults name.
        data: the files that it names, absolute, by what they are called (:func:`resolve_data`).
        precision: what the recipe writes as the model's: ``auto`` still, where it is.
    """

    recipe: Recipe
    path: Path
    data: dict[str, Path]
    precision: Precision

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the recipe's values (:func:`recipe_digest`)."""
        return recipe_digest(self.recipe)

    def with_model(self, model: ModelSettings) -> "ResolvedRecipe":
        """The same with another model to begin with."""
        return self.model_copy(update={"recipe": self.recipe.model_copy(update={"model": model})})


def resolve_recipe(path: Path, overrides: Sequence[str] = ()) -> ResolvedRecipe:
    """Reads a recipe's file, applies ``--set`` overrides, and resolves what it names.

    Raises:
        InputError: with every fault of the file at once.
    """
    return resolved(load_recipe(path, overrides), path)


def resolved(written: Recipe, path: Path) -> ResolvedRecipe:
    """A recipe with what it names resolved, as if it had been read from ``path``."""
    model = resolve_model(written.model, written.resources, path)
    recipe = written.model_copy(update={"model": model})
    return ResolvedRecipe(recipe=recipe, path=path, data=resolve_data(recipe, path), precision=written.model.dtype)


def resolve_model(settings: ModelSettings, resources: Resources, recipe_path: Path) -> ModelSettings:
    """The model settings with absolute paths and this machine's dtype for ``auto``.

    ``base`` stays as it is where it is embedded or a hub's name.
    """
    changed: dict[str, str] = {}
    if settings.dtype == "auto":
        changed["dtype"] = natural_precision(resources.device)
    folder = beside(recipe_path, settings.base)
    if not settings.base.startswith(EMBEDDED_PREFIX) and (folder.is_dir() or is_path(settings.base)):
        changed["base"] = str(folder)
    if settings.chat_template is not None:
        changed["chat_template"] = str(beside(recipe_path, settings.chat_template))
    return settings.model_copy(update=changed)
