"""What is wrong with a recipe's rewards and environments, known before anything runs: missing functions and classes,
prompts without a reference."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from alignment.checks.data import Rows, asked_prompts
from alignment.checks.judges import endpoint_faults
from alignment.data.split import opening, split_by_digest
from alignment.environments import reasoning_tasks
from alignment.errors import Fault, InputError, shortened
from alignment.recipe.import_path import module_file
from alignment.recipe.judges import folder_data
from alignment.recipe.recipe import Recipe
from alignment.recipe.rewards.components import needs_reference
from alignment.recipe.rewards.reward_models import EnsembleReward, ModelReward
from alignment.recipe.rewards.settings import reward_name
from alignment.recipe.rewards.user_function import FunctionReward, data_name
from alignment.recipe.rewards.verifiable import InstructionsReward
from alignment.recipe.stages.environment import ENVIRONMENT, AnyEnvironment
from alignment.recipe.stages.spec import StageSettings
from alignment.reward.instructions import checked_instructions
from alignment.reward.user_function import methods_problem, problem_of


def reward_faults(recipe: Recipe, files: Mapping[str, Path], prompts: Rows, own: Rows = ()) -> list[Fault]:
    """The faults of every stage's rewards. ``prompts`` are those of ``data.prompts``, ``own`` those of
    ``data.held_out_prompts``, with their rows."""
    faults: list[Fault] = []
    for name, stage in recipe.stages.items():
        for index, reward in enumerate(stage.rewards_used()):
            at = f"stages.{name}.rewards.{index}"
            if isinstance(reward, FunctionReward):
                problem = problem_of(reward.function, files.get(data_name(reward)) or module_file(reward.function))
                if problem is not None:
                    remedy = "name a function as file.py:function or package.module:function"
                    faults.append(Fault(problem, remedy, field=f"{at}.function"))
            elif isinstance(reward, EnsembleReward):
                faults += _alike_faults(recipe, reward, f"{at}.models")
            elif isinstance(reward, ModelReward) and reward.model is None:
                faults += _outside_faults(at, reward, files)
            elif needs_reference(reward):
                if isinstance(reward, InstructionsReward) and not stage.inputs().get("prompts"):
                    faults += _instruction_faults(recipe, stage, reward_name(reward), at, files, prompts, own)
                faults += _reference_faults(recipe, stage, reward_name(reward), at, files, prompts, own)
        if (environment := stage.environment_used()) is not None:
            faults += _environment_faults(recipe, name, stage, environment, files, prompts, own)
    return faults


def _environment_faults(
    recipe: Recipe,
    name: str,
    stage: StageSettings,
    environment: AnyEnvironment,
    files: Mapping[str, Path],
    prompts: Rows,
    own: Rows,
) -> Iterator[Fault]:
    """An environment that is not there, and prompts that it can make nothing of."""
    at = f"stages.{name}.environment"
    named = environment.class_used()
    if named is not None:
        path = files.get(named) or module_file(named)
        problem = problem_of(named, path) or (methods_problem(named, path) if path is not None else None)
        if problem is not None:
            remedy = "name a class with reset and step as file.py:Class or package.module:Class"
            yield Fault(problem, remedy, field=f"{at}.class_path")
    elif environment.kind == "reasoning_gym":
        problem = reasoning_tasks.task_problem(environment.task, environment.options)
        if problem is not None:
            yield Fault(problem, "mend it, or remove environment", field=f"{at}.task")
        yield from shortened(list(_place_faults(environment.task, *_asked(recipe, stage, files, prompts, own))))
    if environment.compares():
        yield from _reference_faults(recipe, stage, ENVIRONMENT, at, files, prompts, own)


def _place_faults(task: str, asked: Rows, file: Path) -> Iterator[Fault]:
    """Prompts that are not of the task that is to score their answers."""
    for row, prompt in asked:
        try:
            reasoning_tasks.place_of(prompt.source, task)
        except reasoning_tasks.TaskError as problem:
            remedy = f"write the prompts with python -m {reasoning_tasks.__name__} {task}"
            yield Fault(str(problem), remedy, str(file), row, "source")


def _instruction_faults(
    recipe: Recipe,
    stage: StageSettings,
    called: str,
    at: str,
    files: Mapping[str, Path],
    prompts: Rows,
    own: Rows,
) -> Iterator[Fault]:
    """Checkers that are not installed, and prompts whose reference is no list of instructions that they know."""
    asked, file = _asked(recipe, stage, files, prompts, own)
    rows = [(row, prompt) for row, prompt in asked if prompt.reference is not None]
    for fault in checked_instructions(rows, file, f"remove the reward {called}"):
        yield fault if fault.file else replace(fault, field=at)


def _asked(
    recipe: Recipe, stage: StageSettings, files: Mapping[str, Path], prompts: Rows, own: Rows
) -> tuple[Rows, Path]:
    """The prompts of the recipe's data that a stage asks, with their rows, and their file."""
    if stage.evaluates():
        return asked_prompts(recipe, prompts, own), files.get("held_out_prompts" if own else "prompts", Path())
    split = split_by_digest(prompts, recipe.data.held_out, key=lambda item: opening(item[1]))
    return split[0], files.get("prompts", Path())


def _alike_faults(recipe: Recipe, ensemble: EnsembleReward, field: str) -> Iterator[Fault]:
    """Models of an ensemble that are one and the same: of equal settings, trained by one seed."""
    seen: dict[str, str] = {}
    for name in ensemble.models:
        if (stage := recipe.stages.get(name)) is None:
            continue  # the wiring says so
        settings = stage.model_dump_json() + str(recipe.run_settings(stage).seed)
        if (other := seen.setdefault(settings, name)) != name:
            problem = f"{other} and {name} have the same settings and seed, so they are one model"
            yield Fault(problem, f"give stages.{name} a seed of its own", field=field)


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
    called: str,
    at: str,
    files: Mapping[str, Path],
    prompts: Rows,
    own: Rows,
) -> Iterator[Fault]:
    if given := stage.inputs().get("prompts"):
        problem = f"{called} compares with a reference, and the prompts of {given[0]} have none"
        yield Fault(problem, "remove it, or ask data.prompts", field=at)
        return
    asked, file = _asked(recipe, stage, files, prompts, own)
    what = f"the reward {called}" if called != ENVIRONMENT else "the environment"
    remedy = f"give the row a reference, or remove {what}"
    problem = f"no reference, and {what} compares with it"
    yield from shortened(
        [Fault(problem, remedy, str(file), row, "reference") for row, p in asked if p.reference is None]
    )
