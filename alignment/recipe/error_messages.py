"""What pydantic finds wrong with a recipe, in the words of the recipe's author."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from alignment.errors import Fault, nearest, suggestion
from alignment.recipe.judges import JudgeSettings
from alignment.recipe.metrics import MetricComponent
from alignment.recipe.recipe import Recipe, Stage
from alignment.recipe.rewards.components import RewardComponent
from alignment.recipe.stages.adapters import Adapter
from alignment.recipe.stages.spec import StageSettings
from alignment.recipe.yaml_file import Location

STAGE_KINDS: dict[str, type[StageSettings]] = {
    get_args(stage.model_fields["kind"].annotation)[0]: stage for stage in get_args(get_args(Stage)[0])
}
REWARD_KINDS: Mapping[str, type[BaseModel]] = {
    get_args(reward.model_fields["kind"].annotation)[0]: reward for reward in get_args(get_args(RewardComponent)[0])
}
METRIC_KINDS: Mapping[str, type[BaseModel]] = {
    get_args(metric.model_fields["kind"].annotation)[0]: metric for metric in get_args(get_args(MetricComponent)[0])
}
JUDGE_KINDS: Mapping[str, type[BaseModel]] = {
    get_args(judge.model_fields["kind"].annotation)[0]: judge for judge in get_args(get_args(JudgeSettings)[0])
}
ADAPTER_KINDS: Mapping[str, type[BaseModel]] = {
    get_args(adapter.model_fields["kind"].annotation)[0]: adapter for adapter in get_args(get_args(Adapter)[0])
}

_NAME_RULE = "begin with a lower-case letter; then letters, digits, - and _; 40 at most"
_VARIABLE = (
    "not the name of an environment variable",
    "name the variable that holds it, such as OPENAI_API_KEY; a secret itself stands in no recipe",
)
_SECRETS = {
    **dict.fromkeys(
        ("api_key_env", "url_env", "secret_env", "user_env", "password_env", "slack", "apprise"), _VARIABLE
    ),
    "url": ("not an http(s) address without a user and password in it", "write it as https://host/v1"),
}
_REMEDIES = {
    "missing": "add it",
    "finite_number": "give a finite number",
    "float_type": "write a number, without quotes",
    "int_type": "write a whole number, without quotes",
    "bool_type": "write true or false",
    "string_type": "write text, in quotes where YAML would read it as something else",
    "string_pattern_mismatch": _NAME_RULE,
    "too_short": "give at least one",
    "dict_type": "write a mapping: one `key: value` a line",
    "model_type": "write a mapping: one `key: value` a line",
    "model_attributes_type": "write a mapping: one `key: value` a line",
    "tuple_type": "write a list",
}


def location(error: ErrorDetails) -> Location:
    """Where the error is in the file: pydantic's location without the unions' tags (stages.<name>.<kind>.…, and those
    of rewards, metrics and losses likewise)."""
    loc = tuple(part for part in error["loc"] if part != "[key]")
    loc = (*loc[:2], *loc[3:]) if loc[:1] == ("stages",) else loc
    listed = loc[:1] == ("stages",) and loc[2:3] in (("rewards",), ("metrics",)) and len(loc) > 4
    loc = (*loc[:4], *loc[5:]) if listed else loc
    loc = (*loc[:3], *loc[4:]) if loc[:1] == ("stages",) and loc[2:3] == ("loss",) and len(loc) > 3 else loc
    loc = (*loc[:3], *loc[4:]) if loc[:1] == ("stages",) and loc[2:3] == ("adapter",) and len(loc) > 3 else loc
    place = next((place for place in (2, 4) if loc[:1] == ("stages",) and loc[place : place + 1] == ("judge",)), None)
    tagged = place is not None and loc[place + 1 : place + 2] and loc[place + 1] in JUDGE_KINDS
    return (*loc[: place + 1], *loc[place + 2 :]) if place is not None and tagged else loc


def recipe_fault(error: ErrorDetails, data: Any, where: Callable[[Location], tuple[str | None, int | None]]) -> Fault:
    """The fault of one validation error; ``where`` gives a location's file and line."""
    at = location(error)
    problem, remedy = _words(error, at, data)
    file, row = where(at[:-1] if error["type"] == "missing" else at)
    return Fault(problem, remedy, file, row, ".".join(str(part) for part in at) or None)


def submodel(annotation: Any) -> type[BaseModel] | None:
    """The settings inside a field's type (``Lora | None``, ``tuple[Condition, ...]``), where there are any."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := submodel(part))), None)


def _words(error: ErrorDetails, at: Location, data: Any) -> tuple[str, str]:
    kind, given = error["type"], error["input"]
    if kind == "extra_forbidden":
        return "unknown key", _unknown_key(str(at[-1]), model_at(at[:-1], data))
    if kind == "string_pattern_mismatch" and str(at[-1]) in _SECRETS:
        return _SECRETS[str(at[-1])]  # what was given may be a secret, and is not said again
    kinds = _kinds(at)
    if kind == "union_tag_invalid":
        return f"unknown kind {given.get('kind')!r}", suggestion(str(given.get("kind")), kinds)
    if kind == "union_tag_not_found":
        names = {
            id(JUDGE_KINDS): "judge", id(REWARD_KINDS): "reward", id(METRIC_KINDS): "metric",
            id(ADAPTER_KINDS): "adapter",
        }  # fmt: skip
        what = names.get(id(kinds), "stage")
        return f"the {what} has no kind", f"add `kind: ` and one of {', '.join(kinds)}"
    if kind == "literal_error":
        choices = _choices(at, data)
        return f"{given!r} is not one of {', '.join(choices)}", suggestion(str(given), choices)
    message = error["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if kind == "string_pattern_mismatch":
        message = f"{given!r} is not a name"
    elif kind in ("missing", "too_short"):
        message = {"missing": "missing", "too_short": "empty"}[kind]
    elif not isinstance(given, dict | list):
        message = f"{given!r}: {message}"
    return message, _REMEDIES.get(kind, "give a value that keeps this bound")


def _kinds(at: Location) -> Mapping[str, type[BaseModel]]:
    """The kinds that there are at a location."""
    if at[-1:] == ("judge",):
        return JUDGE_KINDS
    if at[2:3] == ("adapter",):
        return ADAPTER_KINDS
    listed = {"rewards": REWARD_KINDS, "metrics": METRIC_KINDS}
    return listed.get(str(at[2]), STAGE_KINDS) if len(at) > 2 else STAGE_KINDS


def _choices(at: Location, data: Any) -> list[str]:
    """The values that a setting, or an item of a list of them, may have."""
    item = isinstance(at[-1], int)
    field = at[:-1] if item else at
    model = model_at(field[:-1], data)
    if model is None:
        return []
    return _literals(model.model_fields[str(field[-1])].annotation)


def _literals(annotation: Any) -> list[str]:
    """The values of the literals in a type, each once."""
    if get_origin(annotation) is Literal:
        return [str(name) for name in get_args(annotation)]
    return list(dict.fromkeys(name for part in get_args(annotation) for name in _literals(part)))


def _unknown_key(name: str, model: type[BaseModel] | None) -> str:
    """The remedy for a key that is unknown in ``model``; keys one level deeper are looked through as well."""
    if model is None:
        return "remove it"
    known = list(model.model_fields)
    for field, info in model.model_fields.items():
        inner = submodel(info.annotation)
        if inner is not None and name in inner.model_fields and nearest(name, known) is None:
            return f"did you mean {field}.{name}?"
    return suggestion(name, known)


def model_at(at: Location, data: Any) -> type[BaseModel] | None:
    """The settings whose keys stand at a location of ``data``, where its kind can be told."""
    model: type[BaseModel] | None = Recipe
    parts: Location = at
    if at[:1] == ("stages",) and len(at) > 1:
        stage = data["stages"][at[1]]
        model, parts = STAGE_KINDS.get(str(stage.get("kind"))), at[2:]
        if parts[:1] == ("rewards",) and len(parts) > 1:
            inside = stage["rewards"][parts[1]]
            model, parts = REWARD_KINDS.get(str(inside.get("kind"))), parts[2:]
        elif parts[:1] == ("metrics",) and len(parts) > 1:
            inside = stage["metrics"][parts[1]]
            kind = inside if isinstance(inside, str) else inside.get("kind")
            model, parts = METRIC_KINDS.get(str(kind)), parts[2:]
        else:
            inside = stage
        if parts[:1] == ("judge",) and len(parts) > 1:
            model, parts = JUDGE_KINDS.get(str(inside["judge"].get("kind"))), parts[1:]
        elif parts[:1] == ("adapter",) and isinstance(stage.get("adapter"), dict):
            model, parts = ADAPTER_KINDS.get(str(stage["adapter"].get("kind"))), parts[1:]
    for part in parts:
        if model is None or isinstance(part, int):
            continue  # an item of a list: its type was found with the list's
        info = model.model_fields.get(part)
        model = submodel(info.annotation) if info else None
    return model
