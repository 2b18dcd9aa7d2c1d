"""A stage's context made of a whole recipe, for tests that run a stage by itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment.recipe.recipe import Recipe
from alignment.records import Artifact
from alignment.stage import StageContext


@dataclass(slots=True)
class RecipeContext(StageContext):
    """A context that also knows the recipe that it was made of."""

    recipe: Recipe | None = None


def stage_context(
    name: str,
    recipe: Recipe,
    inputs: Mapping[str, Artifact],
    data: Mapping[str, Path],
    output: Path,
    checkpoints: Path,
    *others: Any,
    **more: Any,
) -> RecipeContext:
    """The context of one of the recipe's stages; further arguments are :class:`StageContext`'s."""
    return RecipeContext(name, recipe.run_settings(), inputs, data, output, checkpoints, *others, **more, recipe=recipe)
