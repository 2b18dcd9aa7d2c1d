"""What a recipe says for all of its stages: model, data, seed, resources."""

from typing import Annotated, Literal

from pydantic import Field

from alignment.recipe.base import Name, Settings
from alignment.recipe.resources import Resources

Precision = Literal["auto", "bfloat16", "float32"]


class ModelSettings(Settings):
    """The model to align: a local folder, a hub name, or ``embedded:smollm2-135m``."""

    base: str
    dtype: Precision = "auto"  # auto: what the machine is fast in; the run's recipe says
    revision: str | None = None  # of a hub model; pin it, or the recipe can change under you
    chat_template: str | None = None  # a Jinja file, for a base model that has none
    registered_name: Name = "policy"


class DataSettings(Settings):
    """Where the data is. Paths are relative to the recipe's own folder."""

    prompts: str | None = None
    demonstrations: str | None = None
    preferences: str | None = None
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.2  # share of prompts kept for evaluation, chosen by digest


class RunSettings(Settings):
    """What a stage is told of the recipe that it stands in: nothing of other stages, of schedules or of notices."""

    seed: int
    model: ModelSettings
    held_out: float  # share of prompts kept for evaluation
    resources: Resources = Resources()
