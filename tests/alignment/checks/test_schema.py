"""The recipe's JSON Schema: every setting is described, the shipped file is the schema, and recipes hold to it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from alignment.checks.schema import recipe_schema, schema_text
from alignment.recipe import yaml_file
from flows.recipe_source import RECIPES

FIRST_LINE = "# yaml-language-server: $schema=recipe.schema.json"
SHIPPED = sorted(RECIPES.glob("*.yaml"))


def properties(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for settings, definition in {"Recipe": schema, **schema["$defs"]}.items():
        for name, entry in definition.get("properties", {}).items():
            yield f"{settings}.{name}", entry


def test_every_setting_has_a_description_of_its_own() -> None:
    described = {name: entry.get("description", "") for name, entry in properties(recipe_schema())}
    assert len(described) > 500
    assert [name for name, text in described.items() if len(text) < 10] == []
    assert [name for name, text in described.items() if not text.rstrip().endswith((".", "…"))] == []


def test_the_shipped_schema_is_the_schema() -> None:
    assert (RECIPES / "recipe.schema.json").read_text("utf-8") == schema_text(), "rlhf schema > that file"
    jsonschema.Draft202012Validator.check_schema(json.loads(schema_text()))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_name_the_schema_and_hold_to_it(path: Path) -> None:
    text = path.read_text("utf-8")
    assert text.splitlines()[0] == FIRST_LINE
    jsonschema.validate(yaml_file.parse(text).value, recipe_schema(), jsonschema.Draft202012Validator)


@pytest.mark.parametrize(
    ("stage", "named"),
    [
        ({"kind": "sft", "learning_rat": 1e-4}, "learning_rat"),
        ({"kind": "sft", "learning_rate": -1}, "-1"),
        ({"kind": "evaluate", "model": "base", "metrics": ["pass_at_k", "rogue"]}, "rogue"),
        ({"kind": "evaluate", "model": "base", "metrics": ["classification"]}, "classification"),  # wants its labels
    ],
)
def test_the_schema_finds_what_is_wrong(stage: dict[str, Any], named: str) -> None:
    recipe = {"name": "demo", "model": {"base": "embedded:smollm2-135m"}, "stages": {"first": stage}}
    with pytest.raises(jsonschema.ValidationError) as error:
        jsonschema.validate(recipe, recipe_schema(), jsonschema.Draft202012Validator)
    assert named in str(error.value)


def test_a_metric_may_stand_for_itself() -> None:
    stage = {"kind": "evaluate", "model": "base", "metrics": ["rouge", {"kind": "pass_at_k", "k": 5}]}
    recipe = {"name": "demo", "model": {"base": "embedded:smollm2-135m"}, "stages": {"first": stage}}
    jsonschema.validate(recipe, recipe_schema(), jsonschema.Draft202012Validator)
