"""What is wrong with a recipe's rewards, known before anything runs: missing functions, prompts without a reference."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignment.checks.data import Rows, asked_prompts
from alignment.checks.judges import endpoint_faults
from alignment.data.split import opening, split_by_digest
from alignment.errors import Fault, InputError, shortened
from alignment.recipe.judges import folder_data
from alignment.recipe.recipe import Recipe
from alignment.recipe.rewards import FunctionReward, ModelReward, data_name, module_file, needs_reference, reward_name
from alignment.recipe.stages.spec import StageSettings
from alignment.reward.user_function import problem_of


def reward_faults(recipe: Recipe, files: Mapping[str, Path], prompts: Rows, own: Rows = ()) -> list[Fault]:
    """The faults of every stage's rewards. ``prompts`` are those of ``data.prompts``, ``own`` those of
    ``data.held_out_prompts``, with their rows."""
    faults: list[Fault] = []
    for name, stage in recipe.stages.items():
        for index, reward in enumerate(stage.rewards_used()):
            at = f"stages.{name}.rewards.{index}"
            if isinstance(reward, FunctionReward):
                problem = problem_of(reward, files.get(data_name(reward)) or module_file(reward))
                if problem is not None:
                    remedy = "name a function as file.py:function or package.module:function"
                    faults.append(Fault(problem, remedy, field=f"{at}.function"))
            elif isinstance(reward, ModelReward) and reward.model is None:
                faults += _outside_faults(at, reward, files)
            elif needs_reference(reward):
                faults += _reference_faults(recipe, stage, reward, at, files, prompts, own)
    return faults


def _outside_faults(at: str, reward: ModelReward, files: Mapping[str, Path]) -> Iterator[Fault]:
    """A reward model from outside that is none, or cannot be had."""
    if reward.endpoint is not None:
        yield from endpoint_faults(reward.endpoint, f"{at}.endpoint")
        return
    from alignment.reward.outside_model import LIGHT, REMEDY, reward_model_folder, reward_model_problem

    folder = None if reward.folder is None else files[folder_data(reward.folder)]
    try:
        problem = reward_model_problem(reward_model_folder(reward, folder, LIGHT))
    except InputError as error:
        yield from (replace(fault, field=f"{at}.hub") for fault in error.faults)
        return
    if problem is not None:
        yield Fault(problem, REMEDY, field=f"{at}.{'hub' if folder is None else 'folder'}")


def _reference_faults(
    recipe: Recipe,
    stage: StageSettings,
    reward: Any,
    at: str,
    files: Mapping[str, Path],
    prompts: Rows,
    own: Rows,
) -> Iterator[Fault]:
    called = reward_name(reward)
    if given := stage.inputs().get("prompts"):
        problem = f"{called} compares with a reference, and the prompts of {given[0]} have none"
        yield Fault(problem, "remove it, or ask data.prompts", field=at)
        return
    if stage.evaluates():
        asked, file = asked_prompts(recipe, prompts, own), "held_out_prompts" if own else "prompts"
    else:
        asked, file = split_by_digest(prompts, recipe.data.held_out, key=lambda item: opening(item[1]))[0], "prompts"
    remedy = f"give the row a reference, or remove the reward {called}"
    problem = f"no reference, and the reward {called} compares with it"
    yield from shortened(
        [Fault(problem, remedy, str(files[file]), row, "reference") for row, p in asked if p.reference is None]
    )
