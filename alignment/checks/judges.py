"""What is wrong with a recipe's judges, known before anything runs."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from alignment.errors import Fault
from alignment.recipe.judges import (
    AnyJudge,
    Endpoint,
    GenerativeJudge,
    folder_data,
    judge_digest,
    judge_folder,
    judges_of,
)
from alignment.recipe.recipe import Recipe
from alignment.recipe.rewards import JudgeReward
from alignment.recipe.stages.ai_feedback import ConstitutionStage, SynthesisStage
from alignment.recipe.stages.evaluate import EvaluateStage
from alignment.recipe.stages.judge import JudgeStage
from alignment.recipe.stages.ppo import PpoStage


def judge_faults(recipe: Recipe, files: Mapping[str, Path]) -> list[Fault]:
    """Folders that are not there, keys that are not set, rewards that cannot be given."""
    faults: list[Fault] = []
    for name, stage in recipe.stages.items():
        for at, judge in _places(name, stage):
            faults += _own_faults(judge, at, files)
        for at, endpoint in _writers(name, stage):
            faults += _endpoint_faults(endpoint, at)
        if getattr(stage, "calibrated_by", None) is not None:
            faults += _calibration_faults(recipe, stage, f"stages.{name}")
        for index, reward in enumerate(getattr(stage, "rewards", ())):
            if isinstance(reward, JudgeReward):
                faults += _reward_faults(recipe, stage, reward, f"stages.{name}.rewards.{index}")
    return faults


def _places(name: str, stage: Any) -> Iterator[tuple[str, AnyJudge]]:
    """Every judge of a stage and its field in the recipe."""
    if (own := judges_of(stage).get("judge")) is not None:
        yield f"stages.{name}.judge", own
    for index, reward in enumerate(getattr(stage, "rewards", ())):
        if isinstance(reward, JudgeReward):
            yield f"stages.{name}.rewards.{index}.judge", reward.judge


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
    if isinstance(judge, GenerativeJudge) and judge.endpoint is not None:
        yield from _endpoint_faults(judge.endpoint, f"{at}.endpoint")


def _writers(name: str, stage: Any) -> Iterator[tuple[str, Endpoint]]:
    """Every endpoint that writes for a stage and judges nothing, and its field in the recipe."""
    if isinstance(stage, ConstitutionStage) and stage.writer.endpoint is not None:
        yield f"stages.{name}.writer.endpoint", stage.writer.endpoint
    if isinstance(stage, SynthesisStage):
        yield from ((f"stages.{name}.endpoints.{index}", one) for index, one in enumerate(stage.endpoints))


def _endpoint_faults(endpoint: Endpoint, at: str) -> Iterator[Fault]:
    variable = endpoint.api_key_env
    if variable is not None and not os.environ.get(variable, "").strip():
        problem = f"the environment variable {variable} is not set"
        yield Fault(problem, "set it to the endpoint's key", field=f"{at}.api_key_env")


def _reward_faults(recipe: Recipe, stage: Any, reward: JudgeReward, at: str) -> Iterator[Fault]:
    single = isinstance(stage, EvaluateStage) or (isinstance(stage, PpoStage) and stage.per_prompt < 2)
    if single and not reward.alone:
        problem = f"a judge of form {reward.judge.form} compares answers to one prompt, and here is one answer to each"
        remedy = "judge by form score" + ("" if isinstance(stage, EvaluateStage) else ", or raise per_prompt")
        yield Fault(problem, remedy, field=f"{at}.judge.form")
    yield from _calibration_faults(recipe, reward, at)


def _calibration_faults(recipe: Recipe, asking: Any, at: str) -> Iterator[Fault]:
    """What is wrong between a judge and the stage that ``asking`` says calibrates it."""
    calibrated = recipe.stages.get(asking.calibrated_by or "")
    if isinstance(calibrated, JudgeStage) and judge_digest(calibrated.judge) != judge_digest(asking.judge):
        problem = f"{asking.calibrated_by} calibrates another judge than this one"
        yield Fault(problem, "give both the same settings", field=f"{at}.calibrated_by")
