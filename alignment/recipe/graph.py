"""How a recipe's stages hang together: who reads what of whom, and how many processes do the work."""

from collections.abc import Iterator, Mapping
from typing import TypeVar

from alignment.recipe.base import BASE, STAGE_PREFIX, Product
from alignment.recipe.judges import AnyJudge, judge_models, judge_role
from alignment.recipe.resources import Resources
from alignment.recipe.rewards.components import reward_stages
from alignment.recipe.rewards.judge import JudgeReward
from alignment.recipe.stages.spec import StageSettings
from alignment.records import Artifact

S = TypeVar("S", bound=StageSettings)


def stage_inputs(stage: StageSettings) -> dict[str, tuple[str, ...]]:
    """The stages (or ``base``) that ``stage`` reads from, by the role they play in it: those of its judges and rewards
    included."""
    roles = dict(stage.inputs())
    if models := tuple(dict.fromkeys(name for reward in stage.rewards_used() for name in reward_stages(reward))):
        roles["rewards"] = models
    for judge in judges_of(stage).values():
        if names := judge_models(judge):
            role = judge_role(judge)
            roles[role] = tuple(dict.fromkeys((*roles.get(role, ()), *names)))
    calibrations = [stage.calibration_used(), *(reward.calibrated_by for reward in judge_rewards(stage))]
    if calibrated_by := tuple(name for name in calibrations if name is not None):
        roles["calibrated_by"] = calibrated_by
    return roles


def judge_rewards(stage: StageSettings) -> list[JudgeReward]:
    """The rewards of a stage that a judge gives."""
    return [reward for reward in stage.rewards_used() if isinstance(reward, JudgeReward)]


def judges_of(stage: StageSettings) -> dict[str, AnyJudge]:
    """The judges that a stage names, by the name that a judge's folder goes under as the stage's data.

    That is "judge" for a stage's own, and "judge:<reward>" for those of its rewards.
    """
    own = stage.judge_used()
    judges: dict[str, AnyJudge] = {} if own is None else {"judge": own}
    return judges | {f"judge:{reward.name or reward.kind}": reward.judge for reward in judge_rewards(stage)}


def making(stages: Mapping[str, StageSettings], *products: Product) -> dict[str, StageSettings]:
    """The stages that make one of ``products``, in the recipe's order."""
    return {name: stage for name, stage in stages.items() if set(products) & set(stage.spec.makes)}


def of_type(stages: Mapping[str, StageSettings], settings: type[S]) -> Iterator[tuple[str, S]]:
    """The stages whose settings are of one class, for who reads what only that kind writes."""
    return ((name, stage) for name, stage in stages.items() if isinstance(stage, settings))


def seen_by(name: str, stages: Mapping[str, StageSettings], made: Mapping[str, Artifact]) -> dict[str, Artifact]:
    """What stage ``name`` sees of what was ``made``: as ``base``, what the last stage before it that makes one made.

    That artifact keeps its stage's name; its key says that a stage made it. Where none did, the base is the recipe's.
    """
    before = list(stages)[: list(stages).index(name)]
    makers = [other for other in before if stages[other].makes_base() and other in made]
    if not makers:
        return dict(made)
    return {**made, BASE: made[makers[-1]].model_copy(update={"key": f"{STAGE_PREFIX}{makers[-1]}"})}


def trains_together(stage: StageSettings) -> bool:
    """Whether several workers of a stage share each batch, and so each sum; others do pieces that depend on none."""
    return stage.spec.sharing == "batches"


def workers_of(resources: Resources, stage: StageSettings) -> int:
    """How many processes do a stage's work; one that can be given to no workers takes one."""
    return (stage.workers_wanted() or resources.workers) if stage.can_be_shared() else 1


def trains_on_several(resources: Resources, stage: StageSettings) -> bool:
    """Whether a stage trains on more than one worker; those are who shards."""
    return trains_together(stage) and workers_of(resources, stage) > 1


def fewest_workers(resources: Resources, stage: StageSettings) -> int:
    """How many of them go on where a cluster has room for no more."""
    return min(resources.min_workers or workers_of(resources, stage), workers_of(resources, stage))
