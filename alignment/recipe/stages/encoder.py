"""An encoder of its own that a reward model or a pair classifier may start from."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from alignment.recipe.base import Settings

ENCODER = "encoder"  # under which name a stage is given its folder


class EncoderSettings(Settings):
    """An encoder such as BERT, RoBERTa or ModernBERT: a folder of yours, or one from a hub."""

    folder: str | None = None
    """The encoder's folder, relative to the recipe. One of `folder` and `hub` is required."""
    hub: Annotated[str, Field(pattern=r"^[\w.-]+(/[\w.-]+)?$")] | None = None
    """The encoder's name on a hub."""
    revision: str | None = None
    """Revision of the hub's encoder. Pin it: else the model can change under the recipe."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.folder is None) == (self.hub is None):
            raise ValueError("name one of folder and hub: which encoder")
        if self.revision is not None and self.hub is None:
            raise ValueError("revision is of a hub's encoder: name one with hub, or remove it")
        return self
