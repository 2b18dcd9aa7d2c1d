"""A recipe's model with absolute paths and this machine's precision."""

from pathlib import Path

from alignment.models.precision import natural_precision
from alignment.recipe.files import EMBEDDED_PREFIX, beside, is_path
from alignment.recipe.resources import Resources
from alignment.recipe.run_settings import ModelSettings


def resolve_model(settings: ModelSettings, resources: Resources, recipe_path: Path) -> ModelSettings:
    """The model settings with absolute paths and this machine's dtype for ``auto``.

    ``base`` stays as it is where it is embedded or a hub's name.
    """
    changed: dict[str, str] = {}
    if settings.dtype == "auto":
        changed["dtype"] = natural_precision(resources)
    folder = beside(recipe_path, settings.base)
    if not settings.base.startswith(EMBEDDED_PREFIX) and (folder.is_dir() or is_path(settings.base)):
        changed["base"] = str(folder)
    if settings.chat_template is not None:
        changed["chat_template"] = str(beside(recipe_path, settings.chat_template))
    return settings.model_copy(update=changed)
