"""What is wrong with a recipe's judges, known before anything runs."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from alignment.errors import Fault
from alignment.recipe.graph import judges_of
from alignment.recipe.judges import (
    AnyJudge,
    Endpoint,
    GenerativeJudge,
    ModelServer,
    folder_data,
    judge_digest,
    judge_folder,
)
from alignment.recipe.recipe import Recipe
from alignment.recipe.rewards.judge import JudgeReward
from alignment.recipe.stages.spec import StageSettings


def judge_faults(recipe: Recipe, files: Mapping[str, Path]) -> list[Fault]:
    """Folders that are not there, keys that are not set, rewards that cannot be given."""
    faults: list[Fault] = []
    for name, stage in recipe.stages.items():
        for at, judge in judge_places(name, stage):
            faults += _own_faults(judge, at, files)
        for at, endpoint in endpoint_places(name, stage):
            faults += endpoint_faults(endpoint, at)
        measured, calibrated_by = stage.judge_used(), stage.calibration_used()
        if measured is not None and calibrated_by is not None:
            faults += _calibration_faults(recipe, calibrated_by, measured, f"stages.{name}")
        for index, reward in enumerate(stage.rewards_used()):
            if isinstance(reward, JudgeReward):
                faults += _reward_faults(recipe, stage, reward, f"stages.{name}.rewards.{index}")
    return faults


def judge_places(name: str, stage: StageSettings) -> Iterator[tuple[str, AnyJudge]]:
    """Every judge of a stage and its field in the recipe."""
    if (own := judges_of(stage).get("judge")) is not None:
        yield f"stages.{name}.judge", own
    for index, reward in enumerate(stage.rewards_used()):
        if isinstance(reward, JudgeReward):
            yield f"stages.{name}.rewards.{index}.judge", reward.judge


def endpoint_places(name: str, stage: StageSettings) -> Iterator[tuple[str, Endpoint]]:
    """Every endpoint of a stage, of its judges and of its writers, and its field in the recipe."""
    for at, judge in judge_places(name, stage):
        if isinstance(judge, GenerativeJudge) and judge.endpoint is not None:
            yield f"{at}.endpoint", judge.endpoint
    yield from ((f"stages.{name}.{field}", endpoint) for field, endpoint in stage.endpoints_used())


def _own_faults(judge: AnyJudge, at: str, files: Mapping[str, Path]) -> Iterator[Fault]:
    folder = judge_folder(judge)
    if folder is not None:
        path = files[folder_data(folder)]
        if not any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
            problem = f"{path} is no model's folder" if path.is_dir() else f"no folder {path}"
            yield Fault(problem, "give a Hugging Face model folder, such as registry/policy/v1", field=f"{at}.folder")
        elif not (path / "config.json").is_file() and not (path / "base.json").is_file():
            yield Fault(f"{path} is an adapter that does not say on what base", "give the merged weights' folder",
                        field=f"{at}.folder")  # fmt: skip


def endpoint_faults(endpoint: ModelServer, at: str) -> Iterator[Fault]:
    """A server's key that is not to be had."""
    variable = endpoint.api_key_env
    if variable is not None and not os.environ.get(variable, "").strip():
        problem = f"the environment variable {variable} is not set"
        yield Fault(problem, "set it to the endpoint's key", field=f"{at}.api_key_env")


def _reward_faults(recipe: Recipe, stage: StageSettings, reward: JudgeReward, at: str) -> Iterator[Fault]:
    if stage.answers_per_prompt() == 1 and not reward.alone:
        problem = f"a judge of form {reward.judge.form} compares answers to one prompt, and here is one answer to each"
        remedy = "judge by form score" + ("" if stage.evaluates() else ", or raise per_prompt")
        yield Fault(problem, remedy, field=f"{at}.judge.form")
    if reward.calibrated_by is not None:
        yield from _calibration_faults(recipe, reward.calibrated_by, reward.judge, at)


def _calibration_faults(recipe: Recipe, calibrated_by: str, judge: AnyJudge, at: str) -> Iterator[Fault]:
    """What is wrong between a judge and the stage that is said to calibrate it."""
    stage = recipe.stages.get(calibrated_by)
    measured = stage.judge_used() if stage is not None and "calibration" in stage.spec.makes else None
    if measured is not None and judge_digest(measured) != judge_digest(judge):
        problem = f"{calibrated_by} calibrates another judge than this one"
        yield Fault(problem, "give both the same settings", field=f"{at}.calibrated_by")
