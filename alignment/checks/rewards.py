"""What is wrong with a recipe's rewards, known before anything runs: missing functions, prompts without a reference."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from alignment.data.split import opening, split_by_digest
from alignment.errors import Fault, shortened
from alignment.recipe.recipe import Recipe
from alignment.recipe.rewards import FunctionReward, data_name, module_file, needs_reference, reward_name
from alignment.recipe.stages.spec import StageSettings
from alignment.records import Prompt
from alignment.reward.user_function import problem_of


def reward_faults(recipe: Recipe, files: Mapping[str, Path], prompts: list[tuple[int, Prompt]]) -> list[Fault]:
    """The faults of every stage's rewards. ``prompts`` are those of ``data.prompts``, with their rows."""
    faults: list[Fault] = []
    for name, stage in recipe.stages.items():
        for index, reward in enumerate(stage.rewards_used()):
            at = f"stages.{name}.rewards.{index}"
            if isinstance(reward, FunctionReward):
                problem = problem_of(reward, files.get(data_name(reward)) or module_file(reward))
                if problem is not None:
                    remedy = "name a function as file.py:function or package.module:function"
                    faults.append(Fault(problem, remedy, field=f"{at}.function"))
            elif needs_reference(reward):
                faults += _reference_faults(recipe, stage, reward, at, files, prompts)
    return faults


def _reference_faults(
    recipe: Recipe,
    stage: StageSettings,
    reward: Any,
    at: str,
    files: Mapping[str, Path],
    prompts: list[tuple[int, Prompt]],
) -> Iterator[Fault]:
    called = reward_name(reward)
    if given := stage.inputs().get("prompts"):
        problem = f"{called} compares with a reference, and the prompts of {given[0]} have none"
        yield Fault(problem, "remove it, or ask data.prompts", field=at)
        return
    train, held_out = split_by_digest(prompts, recipe.data.held_out, key=lambda item: opening(item[1]))
    asked = held_out if stage.evaluates() else train
    remedy = f"give the row a reference, or remove the reward {called}"
    problem = f"no reference, and the reward {called} compares with it"
    yield from shortened(
        [Fault(problem, remedy, str(files["prompts"]), row, "reference") for row, p in asked if p.reference is None]
    )
