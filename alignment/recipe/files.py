"""The files that a recipe names, as absolute paths."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignment.recipe.graph import judges_of
from alignment.recipe.import_path import attribute_of, is_file, module_file, module_of
from alignment.recipe.judges import folder_data, judge_folder
from alignment.recipe.recipe import Recipe
from alignment.recipe.rewards.components import reward_folders
from alignment.recipe.rewards.reward_models import ModelReward
from alignment.recipe.rewards.user_function import FunctionReward, data_name

EMBEDDED_PREFIX = "embedded:"


DATA_FILES = ("prompts", "held_out_prompts", "demonstrations", "preferences", "feedback", "corpus")


def resolve_data(recipe: Recipe, recipe_path: Path) -> dict[str, Path]:
    """Absolute paths of the files a recipe names: those of :data:`DATA_FILES` that are set, each rubric and
    constitution under the name that the recipe gives it (``settings.raters.rubric``), the file of each function that is
    a reward under :func:`~alignment.recipe.rewards.user_function.data_name`, that of each environment's class under the
    class's name in the recipe, and each judge's and encoder's folder under :func:`folder_data`."""
    named = {name: value for name in DATA_FILES if (value := getattr(recipe.data, name)) is not None}
    for stage in recipe.stages.values():
        named |= {path: path for path in stage.named_files().values()}
        folders = (judge_folder(judge) for judge in judges_of(stage).values())
        named |= {folder_data(folder): folder for folder in folders if folder is not None}
        named |= reward_folders(stage.rewards_used())
        named |= {folder_data(folder): folder for folder in stage.model_folders().values()}
    files = {name: beside(recipe_path, value) for name, value in named.items()}
    for name, reward in reward_functions(recipe).items():
        path = (
            beside(recipe_path, module_of(reward.function))
            if is_file(reward.function)
            else module_file(reward.function)
        )
        if path is not None:
            files[name] = path
    for environment in environment_classes(recipe):
        path = beside(recipe_path, module_of(environment)) if is_file(environment) else module_file(environment)
        if path is not None:
            files[environment] = path
    return files


def with_absolute_data(recipe: Recipe, data: Mapping[str, Path]) -> Recipe:
    """The recipe with every path of :func:`resolve_data` written out, so that it runs from any folder."""
    values = recipe.model_dump(mode="json")
    for name in DATA_FILES:
        if name in data:
            values["data"][name] = str(data[name])
    for stage in values["stages"].values():
        if stage.get("raters"):
            stage["raters"]["rubric"] = str(data[stage["raters"]["rubric"]])
        if stage.get("qualification"):
            stage["qualification"]["questions"] = str(data[stage["qualification"]["questions"]])
        for task in (stage.get("tasks") or {}).values():
            for what in ("questions", "examples"):
                if task.get(what) is not None:
                    task[what] = str(data[task[what]])
        if stage.get("constitution"):
            stage["constitution"] = str(data[stage["constitution"]])
    for name, stage in recipe.stages.items():
        _absolute_judges(values["stages"][name], data)
        for what, folder in stage.model_folders().items():
            values["stages"][name][what]["folder"] = str(data[folder_data(folder)])
        environment = stage.environment_used()
        named = None if environment is None else environment.class_used()
        if named is not None and is_file(named):
            values["stages"][name]["environment"]["class_path"] = f"{data[named]}:{attribute_of(named)}"
        for index, reward in enumerate(stage.rewards_used()):
            if isinstance(reward, FunctionReward) and is_file(reward.function):
                written = f"{data[data_name(reward)]}:{attribute_of(reward.function)}"
                values["stages"][name]["rewards"][index]["function"] = written
            elif isinstance(reward, ModelReward) and reward.folder is not None:
                values["stages"][name]["rewards"][index]["folder"] = str(data[folder_data(reward.folder)])
    return Recipe.model_validate(values)


def _absolute_judges(stage: dict[str, Any], data: Mapping[str, Path]) -> None:
    """Writes out the folders of a dumped stage's judges."""
    judges = [stage.get("judge"), *(reward.get("judge") for reward in stage.get("rewards") or ())]
    for judge in judges:
        if isinstance(judge, dict) and judge.get("folder") is not None:
            judge["folder"] = str(data[folder_data(judge["folder"])])


def is_path(base: str) -> bool:
    """Whether a model's name can only be a path: a hub's name is ``model`` or ``owner/model``."""
    return base.startswith(("/", ".", "~")) or base.count("/") > 1


def beside(recipe_path: Path, value: str) -> Path:
    return (recipe_path.resolve().parent / Path(value).expanduser()).resolve()


def environment_classes(recipe: Recipe) -> list[str]:
    """Every class that a recipe names as an environment, as it names it."""
    environments = (stage.environment_used() for stage in recipe.stages.values())
    named = (environment.class_used() for environment in environments if environment is not None)
    return list(dict.fromkeys(name for name in named if name is not None))


def reward_functions(recipe: Recipe) -> dict[str, FunctionReward]:
    """Every function that a recipe's rewards name, by the name that its file goes under as data."""
    rewards = (reward for stage in recipe.stages.values() for reward in stage.rewards_used())
    return {data_name(reward): reward for reward in rewards if isinstance(reward, FunctionReward)}
