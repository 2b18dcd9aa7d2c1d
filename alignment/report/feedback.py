"""A run's constitutions and syntheses, for its report."""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from alignment.preferences.ai_feedback_report import ConstitutionFigures, SynthesisFigures
from alignment.recipe.graph import of_type
from alignment.recipe.recipe import Recipe
from alignment.recipe.stages.feedback.ai_feedback import ConstitutionStage, SynthesisStage
from alignment.recipe.stages.spec import StageSettings
from alignment.records import Artifact, Record

R = TypeVar("R", bound=Record)


def constitutions(recipe: Recipe, artifacts: Mapping[str, Artifact]) -> dict[str, ConstitutionFigures]:
    """What critique and revision came to, by stage."""
    return _found(recipe, artifacts, ConstitutionStage, "constitution.json", ConstitutionFigures)


def syntheses(recipe: Recipe, artifacts: Mapping[str, Artifact]) -> dict[str, SynthesisFigures]:
    """What was drawn and what was left out, by stage."""
    return _found(recipe, artifacts, SynthesisStage, "synthesis.json", SynthesisFigures)


def _found(
    recipe: Recipe, artifacts: Mapping[str, Artifact], kind: type[StageSettings], file: str, record: type[R]
) -> dict[str, R]:
    names = [name for name, _stage in of_type(recipe.stages, kind) if name in artifacts]
    return {name: record.model_validate_json((Path(artifacts[name].path) / file).read_text("utf-8")) for name in names}


def reasons(left_out: Mapping[str, int]) -> str:
    """Why steps gave nothing, with how often, in words."""
    return ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in left_out.items()) or "none"


def writer_words(figures: ConstitutionFigures) -> str:
    """Who preferred revisions, for where raters are named."""
    return f"a constitution: {figures.writer} revised responses by its principles, and a revision is preferred"
