"""From a recipe's file to a :class:`~alignment.recipe.recipe.Recipe`, and back.

Relative paths in a recipe start at the recipe's folder, those in ``--set`` at the current one, as a shell's do.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from alignment.digests import digest_of
from alignment.errors import Fault, InputError, errors_of, suggestion
from alignment.recipe import yaml_file
from alignment.recipe.base import MADE_BASE
from alignment.recipe.error_messages import STAGE_KINDS, location, recipe_fault, submodel
from alignment.recipe.files import DATA_FILES, EMBEDDED_PREFIX, is_path
from alignment.recipe.metrics import with_kinds
from alignment.recipe.recipe import Recipe
from alignment.recipe.yaml_file import Location


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe and applies overrides, each ``a.b.c=value`` with the value as YAML (``--set`` of the commands).

    Raises:
        InputError: with every fault at once: file, line, key, the nearest known key.
    """
    data, where, faults = recipe_values(path, overrides)
    faults += [_not_finite(at, *where(at)) for at in _non_finite(data)]
    recipe, more = _validated(data, where, seen={fault.field for fault in faults})
    if recipe is None or faults:
        raise InputError([*faults, *more])
    return recipe.written_out()


def recipe_values(
    path: Path, overrides: Sequence[str]
) -> tuple[dict[str, Any], Callable[[Location], tuple[str | None, int | None]], list[Fault]]:
    """A recipe file's values with overrides, a function from their places to file and line, and the overrides' faults.

    Raises InputError where the file is no mapping in YAML.
    """
    document = yaml_file.parse(_read(path), str(path))
    if not isinstance(document.value, dict):
        problem = "the file is empty" if document.value is None else "the recipe is not a mapping"
        raise InputError([Fault(problem, "write one `key: value` a line", file=str(path))])
    faults: list[Fault] = []
    overridden: list[Location] = []
    for override in overrides:
        try:
            overridden.append(_override(document.value, override))
        except InputError as error:
            faults += error.faults

    def where(at: Location) -> tuple[str | None, int | None]:
        if any(at[: len(changed)] == changed for changed in overridden):
            return "--set", None
        return str(path), document.line(at)

    return _with_defaults(Recipe, _with_made_model(document.value)), where, faults


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML with every default written out; :func:`load_recipe` reads it back equal."""
    return yaml_file.dump(recipe.model_dump(mode="json"))


def recipe_digest(recipe: Recipe) -> str:
    """SHA-256 of the recipe as canonical JSON: of its values, however its file is written. Stages count in order."""
    value = recipe.model_dump(mode="json")
    value["stages"] = list(value["stages"].items())
    return digest_of(value)


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError([Fault("the text is not UTF-8", "save the file as UTF-8", file=str(path))]) from None
    except OSError as error:
        problem = f"the recipe cannot be read: {error.strerror}"
        raise InputError([Fault(problem, "give the path of a recipe's YAML file", file=str(path))]) from None


def _override(data: dict[str, Any], override: str) -> Location:
    """Sets one value in ``data`` and returns where. Raises InputError where it cannot be."""
    key, equals, text = override.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise InputError([Fault(f"{override!r} is not key=value", "write --set stages.dpo.beta=0.2", file="--set")])
    try:
        value = yaml_file.parse(text).value
    except InputError as error:
        problem = error.faults[0].problem
        raise InputError([Fault(problem, "put the value in quotes", file="--set", field=key)]) from None
    at: list[str | int] = []
    inside: Any = data
    for position, name in enumerate(names):
        inside, step = _enter(inside, at, name, key)
        at.append(step)
        if position == len(names) - 1:
            inside[step] = _from_here(tuple(at), value)
        elif isinstance(inside, dict):
            if inside.get(step) is None:
                inside[step] = {}
            inside = inside[step]
        else:
            inside = inside[step]
    return tuple(at)


def _enter(inside: Any, at: Sequence[str | int], name: str, key: str) -> tuple[Any, str | int]:
    """The container to set ``name`` in, and the key or index that it is there."""
    if isinstance(inside, list) and name.isdecimal() and int(name) < len(inside):
        return inside, int(name)
    if not isinstance(inside, dict):
        what = f"a list of {len(inside)}" if isinstance(inside, list) else "a single value"
        problem = f"{'.'.join(map(str, at))} is {what}, which has no {name}"
        raise InputError([Fault(problem, "set the value itself", file="--set", field=key)])
    if list(at) == ["stages"] and name not in inside and key.count(".") > 1:
        raise InputError([Fault(f"no stage {name}", suggestion(name, inside), file="--set", field=key)])
    return inside, name


_NAMED_FILES = (  # settings of a stage that are paths
    ("raters", "rubric"), ("constitution",), ("folder",), ("encoder", "folder"), ("prompting", "examples"),
    ("qualification", "questions"),
)  # fmt: skip


def _from_here(at: Location, value: Any) -> Any:
    """``value`` with its relative paths made absolute from the current folder."""
    if isinstance(value, dict):
        return {name: _from_here((*at, name), inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_from_here((*at, index), inner) for index, inner in enumerate(value)]
    if not isinstance(value, str) or value.startswith(EMBEDDED_PREFIX):
        return value
    is_file = (
        (len(at) == 2 and at[0] == "data" and at[1] in DATA_FILES)
        or at == ("model", "chat_template")
        or at[2:] in _NAMED_FILES
    )
    if at[2:3] == ("rewards",) and at[4:] == ("function",) and ".py:" in value:
        return str(Path(value).expanduser().absolute())
    is_file = is_file or (at[2:3] == ("tasks",) and at[4:] in (("questions",), ("examples",)))
    is_file = is_file or at[-2:] == ("judge", "folder") or (at[2:3] == ("rewards",) and at[4:] == ("folder",))
    is_folder = at == ("model", "base") and (is_path(value) or Path(value).is_dir())
    return str(Path(value).expanduser().absolute()) if is_file or is_folder else value


def _with_made_model(data: dict[str, Any]) -> dict[str, Any]:
    """A recipe's values; where it names no model, and a stage makes one from nothing, it begins with that one."""
    model, stages = data.get("model", {}), data.get("stages")
    if not isinstance(model, dict) or "base" in model or not isinstance(stages, dict):
        return data
    kinds = (stage for stage in stages.values() if isinstance(stage, dict) and stage.get("kind") == "pretrain")
    if any(stage.get("model") is None for stage in kinds):
        return {**data, "model": {"base": MADE_BASE, **model}}
    return data


def _with_defaults(model: type[BaseModel], data: Any) -> Any:
    """``data`` with partly given settings completed from their field's own default.

    ``sampling: {temperature: 0.7}`` changes the temperature and nothing else: not what the stage's default says
    about the other values.
    """
    if not isinstance(data, dict):
        return data
    filled = dict(data)
    for name, value in data.items():
        info = model.model_fields.get(name) if isinstance(name, str) else None
        if info is None or not isinstance(value, dict):
            continue
        if name == "stages" and model is Recipe:
            filled[name] = {stage: _stage_with_defaults(settings) for stage, settings in value.items()}
            continue
        inner = submodel(info.annotation)
        base = info.default.model_dump(mode="json") if isinstance(info.default, BaseModel) else {}
        filled[name] = base | (_with_defaults(inner, value) if inner else value)
    return filled


def _stage_with_defaults(settings: Any) -> Any:
    model = STAGE_KINDS.get(str(settings.get("kind"))) if isinstance(settings, dict) else None
    if model is None:
        return settings
    named = {"metrics": with_kinds(settings["metrics"])} if "metrics" in settings else {}
    return _with_defaults(model, settings | named)


def _validated(data: Any, where: Any, seen: set[str | None]) -> tuple[Recipe | None, list[Fault]]:
    """The recipe, or its faults except in the fields ``seen``.

    Read as JSON in pydantic's strict mode: text is not taken for a number there, nor ``true`` for 1.
    """
    try:
        return Recipe.model_validate_json(json.dumps(data, default=str), strict=True), []
    except ValidationError as error:
        found = [(location(item), recipe_fault(item, data, where)) for item in errors_of(error)]
        return None, [fault for _at, fault in found if fault.field not in seen]


def _non_finite(value: Any, at: Location = ()) -> Iterator[Location]:
    if isinstance(value, float) and not math.isfinite(value):
        yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _non_finite(inner, (*at, key))


def _not_finite(at: Location, file: str | None, row: int | None) -> Fault:
    field = ".".join(str(part) for part in at)
    return Fault("not a finite number", "give a finite number", file, row, field)
