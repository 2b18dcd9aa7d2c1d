"""The JSON Schema of a recipe, by which editors complete and check one while it is written.

It is what :class:`~alignment.recipe.recipe.Recipe` says, and the short form that :mod:`alignment.recipe.load` reads
beside it: a metric's kind by itself. Rules between settings are not in it; ``rlhf check`` knows those.
"""

import json
from typing import Any

from alignment.recipe.error_messages import METRIC_KINDS
from alignment.recipe.recipe import Recipe

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def recipe_schema() -> dict[str, Any]:
    """The schema as JSON values. Every property has a description; a field's docstring is where it comes from."""
    schema = Recipe.model_json_schema()
    items = schema["$defs"]["EvaluateStage"]["properties"]["metrics"]["items"]
    alone = [kind for kind, settings in METRIC_KINDS.items() if _required(settings) == {"kind"}]
    schema["$defs"]["EvaluateStage"]["properties"]["metrics"]["items"] = {"anyOf": [{"enum": alone}, items]}
    schema["required"].remove("model")  # a stage may make it
    schema["$defs"]["ModelSettings"]["required"].remove("base")
    return {"$schema": DIALECT, **schema, "title": "Recipe of rlhf-flows"}


def schema_text() -> str:
    """The schema as it is printed and shipped."""
    return json.dumps(recipe_schema(), indent=1, ensure_ascii=False) + "\n"


def _required(settings: Any) -> set[str]:
    return {name for name, field in settings.model_fields.items() if field.is_required()}
