"""What is wrong with a recipe's data, known without a model: files, rows, columns, and what leaks."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from alignment.data.demonstrations import numbered_demonstrations
from alignment.data.held_out import pair_prompts
from alignment.data.jsonl import shortened
from alignment.data.pairing import PreferenceFile
from alignment.data.preferences import read_preferences
from alignment.data.prompts import numbered_prompts
from alignment.data.split import opening, split_by_digest
from alignment.faults import Fault, InputError
from alignment.recipe import EvaluateStage, PreferenceFileStage, Recipe, RewardStage
from alignment.records import Demonstration, PreferencePair, Prompt

T = TypeVar("T")
READS = {"sft": "demonstrations", "sample": "prompts", "preference_file": "preferences"}  # a stage's kind → its file


@dataclass(slots=True)
class RecipeData:
    """What the files hold, with rows; what could not be read is empty."""

    prompts: list[tuple[int, Prompt]] = field(default_factory=list)
    demonstrations: list[tuple[int, Demonstration]] = field(default_factory=list)
    preferences: PreferenceFile = field(default_factory=lambda: PreferenceFile([]))


def read_data(recipe: Recipe, files: Mapping[str, Path]) -> tuple[RecipeData, list[Fault]]:
    """Reads every file that the recipe names: what they hold, and the faults of all of them."""
    data = RecipeData()
    faults: list[Fault] = []

    def attempt(read: Callable[[], T], default: T) -> T:
        try:
            return read()
        except InputError as error:
            faults.extend(error.faults)
            return default

    if "prompts" in files:
        data.prompts = attempt(lambda: numbered_prompts(files["prompts"])[0], [])
    if "demonstrations" in files:
        data.demonstrations = attempt(lambda: numbered_demonstrations(files["demonstrations"]), [])
    if "preferences" in files:
        stage = next((s for s in recipe.stages.values() if isinstance(s, PreferenceFileStage)), None)
        form, limit = (stage.format, stage.limit) if stage else ("auto", None)
        data.preferences = attempt(lambda: read_preferences(files["preferences"], form, limit), data.preferences)
    for stage_name, settings in recipe.stages.items():
        raters = getattr(settings, "raters", None)
        if raters is not None and not files[raters.rubric].is_file():
            at = f"stages.{stage_name}.raters.rubric"
            faults.append(Fault(f"no such file: {files[raters.rubric]}", "name a rubric's YAML file", field=at))
    return data, faults


def data_faults(recipe: Recipe, files: Mapping[str, Path], data: RecipeData) -> list[Fault]:
    """What is wrong with readable data: missing for a stage, leaking, or too little to hold any out."""
    return [
        *_unset_faults(recipe, files),
        *_side_faults(recipe, data),
        *_leak_faults(recipe, files, data),
        *_margin_faults(recipe, files, data),
    ]


def _unset_faults(recipe: Recipe, files: Mapping[str, Path]) -> Iterator[Fault]:
    for name, stage in recipe.stages.items():
        needed = READS.get(stage.kind)
        if needed is not None and needed not in files:
            remedy = f"set data.{needed} to a file"
            yield Fault(f"not set, and the stage {name} reads it", remedy, field=f"data.{needed}")
        if isinstance(stage, EvaluateStage) and not {"prompts", "preferences"} & set(files):
            problem = f"not set, and the stage {name} asks its held-out part"
            yield Fault(problem, "set data.prompts (or data.preferences) to a file", field="data.prompts")


def _side_faults(recipe: Recipe, data: RecipeData) -> Iterator[Fault]:
    """A side of the split that is empty although a stage works on it."""
    share = recipe.data.held_out
    kinds = {stage.kind for stage in recipe.stages.values()}
    wanted: list[tuple[str, list[Any], bool, bool]] = [
        ("prompts", [prompt for _row, prompt in data.prompts], "sample" in kinds, "evaluate" in kinds),
        ("preference pairs", data.preferences.pairs, "preference_file" in kinds, "preference_file" in kinds),
    ]
    for what, items, needs_train, needs_held_out in wanted:
        train, held_out = split_by_digest(items, share, key=opening)
        if items and ((needs_train and not train) or (needs_held_out and not held_out)):
            side = "trained on" if held_out else "held out"
            problem = f"of {len(items)} {what} none is {side} at the share {share}"
            yield Fault(problem, f"give more {what}, or change the share", field="data.held_out")


def _leak_faults(recipe: Recipe, files: Mapping[str, Path], data: RecipeData) -> list[Fault]:
    """Demonstrations of what evaluation asks: a policy would be graded on what it was shown."""
    if not any(isinstance(stage, EvaluateStage) for stage in recipe.stages.values()):
        return []
    prompts = [prompt for _row, prompt in data.prompts] or pair_prompts(data.preferences.pairs)
    held_out = {opening(prompt) for prompt in split_by_digest(prompts, recipe.data.held_out, key=opening)[1]}
    return shortened(
        [
            Fault(
                "the prompt is held out for evaluation, and would be trained on here",
                "remove the row, or take the prompt out of the prompts",
                str(files["demonstrations"]),
                row,
                "messages",
            )
            for row, demonstration in data.demonstrations
            if opening(demonstration) in held_out
        ]
    )


def _margin_faults(recipe: Recipe, files: Mapping[str, Path], data: RecipeData) -> Iterator[Fault]:
    pairs: list[PreferencePair] = data.preferences.pairs
    for name, stage in recipe.stages.items():
        if not (isinstance(stage, RewardStage) and stage.use_margin):
            continue
        source = recipe.stages.get(stage.preferences)
        if isinstance(source, PreferenceFileStage) and pairs and all(pair.margin is None for pair in pairs):
            problem = f"no pair of {files['preferences']} has a margin"
            yield Fault(problem, "set it to false, or give margins", field=f"stages.{name}.use_margin")
