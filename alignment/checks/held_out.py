"""Held-out prompts in a file of their own: who asks them, how many they are, and what was trained on after all."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from alignment.checks.data import RecipeData
from alignment.data.prompts import numbered_prompts
from alignment.data.split import opening
from alignment.errors import Fault, shortened
from alignment.recipe.recipe import Recipe
from alignment.recipe.resolved import ResolvedRecipe

HELD_OUT = "held_out_prompts"


def held_out_faults(recipe: Recipe, files: Mapping[str, Path], data: RecipeData) -> list[Fault]:
    """A file that no stage asks, and its prompts that stand in another file too; none where no such file is set."""
    faults = []
    if HELD_OUT in files and not _asking(recipe, files):
        remedy = "remove it, or add a stage of kind evaluate that leaves its prompts out"
        faults.append(Fault("no stage asks these prompts", remedy, field=f"data.{HELD_OUT}"))
    return faults + shortened(list(_contaminated(files, data)))


def held_out_notice(resolved: ResolvedRecipe) -> str | None:
    """How many prompts the file holds and who asks them, as a line; to be asked of a recipe without faults."""
    if HELD_OUT not in resolved.data:
        return None
    prompts, duplicates = numbered_prompts(resolved.data[HELD_OUT])
    asking = ", ".join(_asking(resolved.recipe, resolved.data))
    less = f"; {duplicates} of its rows are duplicates and left out" if duplicates else ""
    return f"data.{HELD_OUT}: {len(prompts)} prompts, asked by {asking}{less}"


def _asking(recipe: Recipe, files: Mapping[str, Path]) -> list[str]:
    return [name for name, stage in recipe.stages.items() if stage.evaluates() and HELD_OUT in stage.data_files(files)]


def _contaminated(files: Mapping[str, Path], data: RecipeData) -> Iterator[Fault]:
    """Held-out prompts that open as another file's row does (:func:`alignment.data.split.opening`), whatever part of
    that file is trained on: the share that it holds out is there to choose settings by."""
    seen: dict[str, tuple[str, int]] = {}
    pairs = data.preferences
    for name, openings in (
        ("prompts", [(row, opening(prompt)) for row, prompt in data.prompts]),
        ("demonstrations", [(row, opening(demonstration)) for row, demonstration in data.demonstrations]),
        ("feedback", [(row, opening(feedback)) for row, feedback in data.feedback]),
        ("preferences", [(pairs.rows[pair.id], opening(pair)) for pair in pairs.pairs]),
    ):
        for row, text in openings:
            seen.setdefault(text, (str(files[name]), row))
    for row, prompt in data.held_out_prompts:
        if (other := seen.get(opening(prompt))) is not None:
            file, where = other
            problem = f"held out here, and the same prompt is row {where} of {file}"
            yield Fault(problem, "remove one of the two rows", str(files[HELD_OUT]), row, "prompt")
