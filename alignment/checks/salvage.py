"""What is left of a recipe without its structural faults, so that the others can be told in the same breath."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from alignment.checks.recipe import check_recipe
from alignment.errors import Fault, InputError
from alignment.recipe.error_messages import location
from alignment.recipe.load import recipe_values
from alignment.recipe.recipe import Recipe
from alignment.recipe.resolved import resolved
from alignment.recipe.yaml_file import Location

ROUNDS = 8  # a setting that is left out may bring up others


class Salvaged(NamedTuple):
    """A recipe without what could not be read of it, and where that was."""

    recipe: Recipe
    removed: frozenset[Location]

    def tells(self, fault: Fault) -> bool:
        """Whether a fault is of what was read, and no echo of what was left out."""
        field = tuple((fault.field or "").split("."))
        text = f"{fault.problem} {fault.remedy}"
        for at in self.removed:
            path = tuple(map(str, at))
            if field[: len(path)] == path or (len(path) == 2 and path[0] == "stages" and path[1] in text.split()):
                return False
        return True


def other_faults(path: Path, overrides: Sequence[str] = ()) -> list[Fault]:
    """The faults of a recipe's data, stages and model beside the structural ones for which it is refused."""
    try:
        values, _where, _faults = recipe_values(path, overrides)
    except InputError:
        return []
    left = salvage(values)
    return [] if left is None else [fault for fault in check_recipe(resolved(left.recipe, path)) if left.tells(fault)]


def salvage(data: dict[str, Any]) -> Salvaged | None:
    """The recipe of ``data`` without the settings, stages or sections that are refused; None where nothing is left.

    ``data`` is what a recipe's file holds, partly given settings completed; it is not changed.
    """
    data = json.loads(json.dumps(data, default=str))
    removed: set[Location] = set()
    for _round in range(ROUNDS):
        try:
            return Salvaged(Recipe.model_validate_json(json.dumps(data), strict=True), frozenset(removed))
        except ValidationError as error:
            before = len(removed)
            for item in error.errors(include_url=False):
                at = _outermost(location(item), missing=item["type"] == "missing")
                if at and _remove(data, at):
                    removed.add(at)
            if len(removed) == before:
                return None
    return None


def _outermost(at: Location, *, missing: bool) -> Location:
    """What to leave out for an error: the setting itself, or what cannot be without it."""
    if at[:1] == ("stages",):
        return at[:2] if missing or len(at) != 3 or at[-1] == "kind" else at
    return at[:-1] if missing else at[:2]


def _remove(data: Any, at: Location) -> bool:
    inside = data
    for part in at[:-1]:
        try:
            inside = inside[part]
        except (KeyError, IndexError, TypeError):
            return False
    if isinstance(inside, dict) and at[-1] in inside:
        del inside[at[-1]]
        return True
    return False
