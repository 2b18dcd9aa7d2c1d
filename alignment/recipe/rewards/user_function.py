"""A reward that a function of the user's computes."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from alignment.recipe.base import Positive
from alignment.recipe.import_path import attribute_of
from alignment.recipe.rewards.settings import RewardSettings, reward_name


class FunctionReward(RewardSettings):
    """A function of the user's: ``rewards.py:polite`` (a file beside the recipe) or ``package.module:polite``.

    It runs in a process of its own, and is called as ``polite(prompts, responses, references, **options)`` with lists
    of messages, texts, and texts or None; it returns one number for each. It may be ``async``. Where it takes
    ``finished`` by name (or any keyword), that is a list of booleans: False for an answer that was cut off at its
    longest length.
    """

    kind: Literal["function"]
    """A function of the user's."""
    function: Annotated[str, Field(pattern=r"^[^:]+:[A-Za-z_]\w*$")]
    """`file.py:name`, relative to the recipe, or `package.module:name`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the function."""
    seconds: Positive = 600.0
    """Time limit for one call in seconds, after which the stage ends."""

    @field_validator("options")
    @classmethod
    def _not_told_otherwise(cls, options: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted({"prompts", "responses", "references", "finished"} & set(options)):
            raise ValueError(f"{taken[0]} is what the stage tells the function itself; give the option another name")
        return options


def data_name(settings: FunctionReward) -> str:
    """Under which name a stage is given the function's file; it changes with whatever makes another function of it."""
    return f"{reward_name(settings)}:{attribute_of(settings.function)}"
