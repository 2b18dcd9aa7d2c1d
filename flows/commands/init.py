"""`rlhf init`: a recipe to begin with."""

import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from alignment.errors import Fault, InputError, suggestion
from alignment.models.embedded import EMBEDDED
from alignment.recipe.base import Name
from alignment.recipe.files import EMBEDDED_PREFIX, is_path
from flows.command_lines import this_program
from flows.console import PlainConsole
from flows.recipe_source import RECIPES

STARTER = RECIPES / "init"
SMALL = RECIPES / "quickstart"  # whose prompts and demonstrations are a start for whoever brings none


def init_command(
    name: str, model: str, prompts: Path | None, demonstrations: Path | None, preferences: Path | None, *, as_json: bool
) -> None:
    """Writes ``NAME.yaml`` and, in a folder ``NAME``, the small data that nobody gave. Nothing where there are faults.

    Raises InputError for a name that is none or taken, data that cannot be read, a model's folder that is not there.
    """
    target, folder = Path(f"{name}.yaml"), Path(name)
    given = {"prompts": prompts, "demonstrations": demonstrations, "preferences": preferences}
    small = _small_data(given)
    copies = {folder / source.name: source for source in small.values()}
    faults = [*_name_faults(name, target, folder, taken=bool(copies)), *_model_faults(model), *_data_faults(given)]
    if faults:
        raise InputError(faults)
    paths = {what: _yaml(_written(path)) for what, path in given.items() if path is not None}
    paths |= {what: f"{name}/{source.name}" for what, source in small.items()}
    text = _render(name, model, paths, small)
    with tempfile.TemporaryDirectory(dir=".", prefix=".rlhf-init-") as scratch:
        for copy, source in copies.items():
            shutil.copyfile(source, Path(scratch) / copy.name)
        (Path(scratch) / target.name).write_text(text, "utf-8")
        if copies:
            folder.mkdir()
        for copy in copies:
            (Path(scratch) / copy.name).rename(copy)
        (Path(scratch) / target.name).rename(target)
    _say(target, list(copies), as_json=as_json)


def _small_data(given: dict[str, Path | None]) -> dict[str, Path]:
    """What a recipe needs and was not given: prompts, a rubric to compare their answers by, and where there is no data
    at all, demonstrations."""
    if given["preferences"] is not None:
        return {}
    small = {"rubric": STARTER / "rubric.yaml"}
    if given["prompts"] is None:
        small["prompts"] = SMALL / "prompts.jsonl"
        if given["demonstrations"] is None:
            small["demonstrations"] = SMALL / "demonstrations.jsonl"
    return small


def _name_faults(name: str, target: Path, folder: Path, *, taken: bool) -> list[Fault]:
    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError:
        remedy = "begin with a lower-case letter; then letters, digits, - and _; 40 at most"
        return [Fault(f"{name!r} is not a recipe's name", remedy, field="NAME")]
    there = [path for path in (target, *([folder] if taken else [])) if path.exists()]
    return [Fault(f"{path} is there already", "remove it, or choose another name", field="NAME") for path in there]


def _model_faults(model: str) -> list[Fault]:
    if model.startswith(EMBEDDED_PREFIX):
        name, known = model.removeprefix(EMBEDDED_PREFIX), list(EMBEDDED)
        problem = f"no embedded model {name!r}"
        return [] if name in known else [Fault(problem, suggestion(name, known), field="--model")]
    if is_path(model) and not Path(model).expanduser().is_dir():
        return [Fault(f"no folder {model}", "give a model's folder, or a name on the hub", field="--model")]
    return []


def _data_faults(given: dict[str, Path | None]) -> list[Fault]:
    """What the readers of the data find wrong, all of it."""
    from alignment.data.demonstrations import read_demonstrations
    from alignment.data.preferences import read_preferences
    from alignment.data.prompts import read_prompts

    readers: dict[str, Callable[[Path], Any]] = {
        "prompts": read_prompts, "demonstrations": read_demonstrations, "preferences": read_preferences,
    }  # fmt: skip
    faults: list[Fault] = []
    for what, path in given.items():
        try:
            if path is not None:
                readers[what](path)
        except InputError as error:
            faults += error.faults
    return faults


def _render(name: str, model: str, paths: dict[str, str], small: dict[str, Path]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(STARTER), undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False
    )
    is_folder = not model.startswith(EMBEDDED_PREFIX) and Path(model).expanduser().is_dir()
    base = _written(Path(model).expanduser()) if is_folder else model
    return environment.get_template("recipe.yaml.j2").render(
        schema=(RECIPES / "recipe.schema.json").as_uri(),
        name=name,
        description=_yaml(f"{Path(model).name} learns what {'people' if 'preferences' in paths else 'raters'} prefer."),
        model=_yaml(f"./{base}" if is_folder and not is_path(base) else base),
        prompts=paths.get("prompts"),
        demonstrations=paths.get("demonstrations"),
        preferences=paths.get("preferences"),
        rubric=paths.get("rubric"),
        start="sft" if "demonstrations" in paths else "base",
        small_prompts="prompts" in small,
        small_demonstrations="demonstrations" in small,
    )


def _written(path: Path) -> str:
    """A path as a recipe in this folder names it: as it was given where that is below this folder, else absolute."""
    whole = path.expanduser().resolve()
    return os.path.relpath(whole) if whole.is_relative_to(Path.cwd()) else str(whole)


def _yaml(text: str) -> str:
    """Text as YAML writes it in a line: in quotes where it has to be."""
    return yaml.safe_dump(text, width=10_000, allow_unicode=True).removesuffix("\n...\n").strip()


def _say(target: Path, copies: list[Path], *, as_json: bool) -> None:
    lines = [shlex.join([*this_program(), command, str(target)]) for command in ("check", "plan", "run")]
    if as_json:
        print(json.dumps({"recipe": str(target), "data": [str(copy) for copy in copies], "next": lines}, indent=2))
        return
    console = PlainConsole()
    console.print(f"{target} is written" + (f", with {', '.join(map(str, copies))} to begin with" if copies else ""))
    for line in lines:
        console.print(f"  {line}")
