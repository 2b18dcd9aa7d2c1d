"""A constitution's file: principles as YAML."""

from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from alignment.errors import Fault, InputError
from alignment.recipe import yaml_file
from alignment.recipe.base import Settings
from alignment.recipe.stages.feedback.ai_feedback import Principle, check_principles


class Constitution(Settings):
    """Principles, and where they come from."""

    name: str = ""
    description: str = ""
    principles: tuple[Principle, ...] = Field(min_length=1, max_length=200)

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        check_principles(self.principles)
        return self


def load_constitution(path: Path) -> Constitution:
    """Reads a constitution from YAML. Raises InputError with every fault in the file."""
    file = str(path)
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
        raise InputError([Fault(problem, "name an existing constitution file", file=file)]) from error
    except UnicodeDecodeError as error:
        raise InputError([Fault("is not UTF-8 text", "save it as UTF-8", file=file)]) from error
    value = yaml_file.parse(text, file).value
    try:
        return Constitution.model_validate(value)
    except ValidationError as error:
        raise InputError([_fault(file, detail) for detail in error.errors()]) from error


def _fault(file: str, detail: Any) -> Fault:
    remedies = {"extra_forbidden": "remove it, or correct its name", "missing": "add it"}
    remedy = remedies.get(detail["type"], "write a list `principles`, each with name, critique and revision")
    problem = detail["msg"].removeprefix("Value error, ")
    return Fault(problem, remedy, file=file, field=".".join(str(part) for part in detail["loc"]) or None)
