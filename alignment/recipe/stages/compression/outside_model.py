"""The settings of a model that no stage of the recipe makes, and that stages read beside the base."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from alignment.recipe.stages.spec import StageSettings, StageSpec

FOLDER = "folder"  # under which name the stage is given its folder
VERSION = "version"  # that of a registered version's weights
VERSION_BASE = "version_base"  # that of the model which the version's adapter stands on, where it is one


class OutsideModelStage(StageSettings):
    """A model from outside the recipe, such as a teacher: a registered version, a folder, or one from a hub.

    What it makes is a policy of whole weights that stages read by the stage's name, as they read `base`. A version's
    adapter is merged. An alias such as `policy@champion` is looked up when the run comes to it: another champion is
    another model, and what was made of the one before is not taken for it.
    """

    spec: ClassVar[StageSpec] = StageSpec(
        run="alignment.stages.compression.outside_model", makes=("policy",), computes=False, headline=("parameters",)
    )
    kind: Literal["outside_model"]
    """A model from outside the recipe."""
    version: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,39}([@/][A-Za-z0-9_-]+)?$")] | None = None
    """A registered version: `policy@champion`, `policy/3`. One of `version`, `folder` and `hub` is required."""
    folder: str | None = None
    """A Hugging Face model's folder with whole weights, relative to the recipe."""
    hub: Annotated[str, Field(pattern=r"^[\w.-]+(/[\w.-]+)?$")] | None = None
    """A model's name on a hub."""
    revision: str | None = None
    """Revision of the hub's model. Pin it: else the model can change under the recipe."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if sum(one is not None for one in (self.version, self.folder, self.hub)) != 1:
            raise ValueError("name one of version, folder and hub: which model")
        if self.revision is not None and self.hub is None:
            raise ValueError("revision is of a hub's model: name one with hub, or remove it")
        return self

    def model_folders(self) -> dict[str, str]:
        """Its folder, where it names one."""
        return {} if self.folder is None else {FOLDER: self.folder}

    def version_used(self) -> str | None:
        """The registered version that it is."""
        return self.version

    def is_outside(self) -> bool:
        """Whether its model has a tokenizer of its own."""
        return True
