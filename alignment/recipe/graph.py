"""TODO: alignment/recipe/graph.py"""

from typing import Any

from alignment.recipe.base import Training
from alignment.recipe.judges import judge_models, judge_role, pays
from alignment.recipe.recipe import Recipe
from alignment.recipe.rewards import JudgeReward, ModelReward
from alignment.recipe.stages.ai_feedback import ConstitutionStage
from alignment.recipe.stages.grpo import GroupStage
from alignment.recipe.stages.judge import JudgeStage
from alignment.recipe.stages.ppo import PpoStage


def trains_together(stage: Any) -> bool:
    """Whether several workers of a stage share each batch, and so each sum; others do pieces that depend on none."""
    return isinstance(stage, Training | GroupStage | PpoStage)


def has_workers(stage: Any) -> bool:
    """Whether a stage's work may be given to workers; what only waits for an endpoint is not."""
    return hasattr(stage, "workers") and not (isinstance(stage, JudgeStage) and pays(stage.judge))


def workers_of(recipe: Recipe, stage: Any) -> int:
    """How many processes do a stage's work; one that can be given to no workers takes one."""
    if not has_workers(stage):
        return 1
    return stage.workers or recipe.resources.workers


def trains_on_several(recipe: Recipe, stage: Any) -> bool:
    """Whether a stage trains on more than one worker; those are who shards."""
    return trains_together(stage) and workers_of(recipe, stage) > 1


def fewest_workers(recipe: Recipe, stage: Any) -> int:
    """How many of them go on where a cluster has room for no more."""
    return min(recipe.resources.min_workers or workers_of(recipe, stage), workers_of(recipe, stage))


def stage_inputs(stage: Any) -> dict[str, tuple[str, ...]]:
    """The stages (or ``base``) that ``stage`` reads from, by the role they play in it."""
    roles: dict[str, tuple[str, ...]] = {}
    for role in ("model", "models", "policies", "responses", "preferences", "demonstrations", "reward", "reference",
                 "prompts", "against"):  # fmt: skip
        value = getattr(stage, role, None)
        if value is not None:
            roles[role] = (value,) if isinstance(value, str) else tuple(value)
    if models := tuple(reward.model for reward in getattr(stage, "rewards", ()) if isinstance(reward, ModelReward)):
        roles["rewards"] = models
    own = getattr(stage, "judge", None)
    judges = [] if own is None else [own]
    judged = [reward for reward in getattr(stage, "rewards", ()) if isinstance(reward, JudgeReward)]
    for judge in [*judges, *(reward.judge for reward in judged)]:
        role = judge_role(judge)
        if named := judge_models(judge):
            roles[role] = tuple(dict.fromkeys((*roles.get(role, ()), *named)))
    if isinstance(stage, ConstitutionStage) and stage.writer.model is not None:
        roles["writer"] = (stage.writer.model,)
    calibrated = tuple(one.calibrated_by for one in (stage, *judged) if getattr(one, "calibrated_by", None) is not None)
    if isinstance(stage, JudgeStage) and stage.calibration is not None:
        roles["calibration"] = (stage.calibration,)
    if calibrated:
        roles["calibrated_by"] = calibrated
    return roles
