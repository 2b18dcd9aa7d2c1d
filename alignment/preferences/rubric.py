"""A rubric: what a good answer is, as weighted criteria that people read and programs measure.

The score of an answer is 10 × the weighted mean of the criteria that apply to its prompt, times the value of every
required one. Good style thus earns nothing for an answer that says nothing.
"""

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from alignment.errors import Fault, InputError
from alignment.preferences.rubric_measures import (
    Copying,
    Direct,
    Echo,
    Finished,
    Plain,
    ReferenceAnswer,
    Repetition,
    Sentences,
    Substance,
    Topic,
    Translation,
    Words,
)
from alignment.recipe import yaml_file
from alignment.records import Prompt, Record, Response

POINTS = 10.0

Measured = Annotated[
    ReferenceAnswer
    | Translation
    | Topic
    | Substance
    | Echo
    | Copying
    | Repetition
    | Sentences
    | Words
    | Direct
    | Plain
    | Finished,
    Field(discriminator="measure"),
]
Points = Annotated[float, Field(ge=0, le=POINTS)]


class Rubric(BaseModel):
    """A house style. The three thresholds are in points, from 0 to 10."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(min_length=1)]
    description: str = ""
    both_bad_below: Points = 0.0  # 0: never
    clearly_better: Points = 1.5
    much_better: Points = 4.0
    criteria: tuple[Measured, ...]

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        names = [criterion.name for criterion in self.criteria]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two criteria have the same name: {', '.join(twice)}")
        if not any(criterion.weight > 0 for criterion in self.criteria):
            raise ValueError("no criterion has a weight above 0")
        if self.much_better < self.clearly_better:
            raise ValueError("much_better is below clearly_better")
        return self


class RubricScore(Record):
    """An answer's score in points (0 to 10), and each applying criterion's value (0 to 1)."""

    total: float
    criteria: dict[str, float]


def load_rubric(path: str | Path) -> Rubric:
    """Reads a rubric from YAML. Raises InputError with every fault in the file."""
    path = Path(path)
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
        raise InputError([Fault(problem, "name an existing rubric file", file=str(path))]) from error
    except UnicodeDecodeError as error:
        raise InputError([Fault("is not UTF-8 text", "save it as UTF-8", file=str(path))]) from error
    settings = yaml_file.parse(text, str(path)).value
    try:
        return Rubric.model_validate(settings)
    except ValidationError as error:
        raise InputError([_fault(path, detail) for detail in error.errors()]) from error


def _fault(path: Path, detail: Any) -> Fault:
    remedies = {
        "extra_forbidden": "remove it, or correct its name",
        "missing": "add it",
        "union_tag_invalid": "choose one of the measures named",
    }
    remedy = remedies.get(detail["type"], "correct it; alignment/preferences/rubric.py says what may stand here")
    problem = detail["msg"].removeprefix("Value error, ")
    field = ".".join(str(part) for part in detail["loc"]) or None
    return Fault(problem, remedy, file=str(path), field=field)


def score(rubric: Rubric, prompt: Prompt, response: Response) -> RubricScore:
    """Scores one answer; deterministic, and the same whichever other answers there are.

    Where no weighted criterion applies to the prompt, the required ones alone decide.
    """
    values: dict[str, float] = {}
    earned = possible = 0.0
    scale = 1.0
    for criterion in rubric.criteria:
        if not criterion.applies(prompt):
            continue
        value = criterion.value(prompt, response)
        values[criterion.name] = value
        earned += criterion.weight * value
        possible += criterion.weight
        if criterion.required:
            scale *= value
    style = earned / possible if possible else 1.0
    return RubricScore(total=POINTS * style * scale, criteria=values)
