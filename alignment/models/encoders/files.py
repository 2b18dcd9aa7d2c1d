"""Where the files of an encoder are that a recipe names: its folder, or the hub's cache."""

from collections.abc import Sequence
from pathlib import Path

from alignment.models.hub import hub_files
from alignment.recipe.run_settings import ModelSettings
from alignment.recipe.stages.scoring import EncoderSettings

FILES = ("*.json", "*.safetensors", "*.model", "*.txt")
LIGHT = ("*.json", "*.model", "*.txt")  # all but the weights


def encoder_folder(
    settings: EncoderSettings, folder: Path | None, patterns: Sequence[str] = FILES, *, field: str = "encoder.hub"
) -> Path:
    """The folder with an encoder's files. ``folder`` is that of ``settings.folder``. Raises InputError for a hub's."""
    if folder is not None:
        return folder
    assert settings.hub is not None
    return hub_files(ModelSettings(base=settings.hub, revision=settings.revision), patterns, field=field)
