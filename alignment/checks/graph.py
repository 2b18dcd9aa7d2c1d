"""What is wrong with a recipe's stages as such: inputs that nothing makes, gates that ask for what is not measured."""

from collections.abc import Iterator, Mapping
from typing import Any

from alignment.data.columns import listed
from alignment.errors import Fault
from alignment.evaluation.gate import resolve
from alignment.evaluation.metric_names import directions, evaluation_judges, evaluation_metric_names
from alignment.recipe.base import BASE, CHAMPION
from alignment.recipe.error_messages import nearest, suggestion
from alignment.recipe.gate import Condition, Gate
from alignment.recipe.graph import fewest_workers, stage_inputs, trains_on_several, trains_together, workers_of
from alignment.recipe.recipe import Recipe
from alignment.recipe.stages.dpo import DpoStage
from alignment.recipe.stages.evaluate import EvaluateStage
from alignment.recipe.stages.grpo import GroupStage
from alignment.recipe.stages.judge import JudgeStage
from alignment.recipe.stages.overoptimisation import OveroptimisationStage
from alignment.recipe.stages.ppo import PpoStage
from alignment.recipe.stages.preferences import HumanPreferencesStage, PreferencesStage
from alignment.recipe.stages.sample import SampleStage
from alignment.recipe.stages.tournament import TournamentStage

RESERVED = {BASE: "the model that all start from", CHAMPION: "the version that is promoted"}
MAKES = {  # a stage's kind → what other stages can read of it
    "sft": ("a model",),
    "sample": ("responses",),
    "synthesis": ("responses",),
    "preferences": ("preferences",),
    "human_preferences": ("preferences",),
    "judge": ("preferences", "a judge's calibration"),
    "constitution": ("preferences", "demonstrations"),
    "preference_file": ("preferences", "held-out prompts"),
    "reward": ("a reward model",),
    "pair_classifier": ("a pair classifier",),
    "dpo": ("a model",),
    "ppo": ("a model",),
    "grpo": ("a model",),
    "rloo": ("a model",),
    "evaluate": ("an evaluation",),
    "tournament": ("a model",),
    "overoptimisation": ("an experiment",),
}
NEEDS = {  # the role that an input plays → what it must be
    "model": "a model",
    "models": "a model",
    "policies": "a model",
    "reference": "a model",
    "against": "a model",
    "responses": "responses",
    "preferences": "preferences",
    "demonstrations": "demonstrations",
    "writer": "a model",
    "reward": "a reward model",
    "rewards": "a reward model",
    "judge": "a model",
    "judge_reward": "a reward model",
    "judge_classifier": "a pair classifier",
    "calibration": "preferences",
    "calibrated_by": "a judge's calibration",
    "prompts": "held-out prompts",
}


def wiring_faults(recipe: Recipe) -> list[Fault]:
    """Faults of the stages' inputs and of the gate; each names its field, and the file is the recipe."""
    faults: list[Fault] = []
    made: dict[str, tuple[str, ...]] = {BASE: ("a model",)}
    for name, stage in recipe.stages.items():
        if name in RESERVED:
            problem = f"{name} is the name of {RESERVED[name]}"
            faults.append(Fault(problem, "give the stage another name", field=f"stages.{name}"))
        faults += _input_faults(name, stage, made, recipe)
        faults += _stage_faults(name, stage, recipe)
        made[name] = MAKES[stage.kind]
    faults += _sharding_faults(recipe)
    return faults + (list(_gate_faults(recipe.gate, recipe.stages)) if recipe.gate else [])


def _input_faults(name: str, stage: Any, made: Mapping[str, tuple[str, ...]], recipe: Recipe) -> Iterator[Fault]:
    for role, sources in stage_inputs(stage).items():
        field = f"stages.{name}.{role}"
        fitting = [source for source, kind in made.items() if NEEDS[role] in kind]
        for source in sources:
            if source == CHAMPION and role == "against" and isinstance(stage, EvaluateStage):
                continue  # the registry gives it, when the stage runs
            if NEEDS[role] in made.get(source, ()):
                continue
            if source == name:
                problem = "a stage cannot read its own output"
            elif source in made:
                problem = f"{source} makes {listed(made[source])}, not {NEEDS[role]}"
            elif source in recipe.stages:
                problem = f"{source} comes later; stages run in the order they are written"
            else:
                problem = f"no stage {source}"
            near = nearest(source, fitting) if source not in recipe.stages else None
            yield Fault(problem, f"did you mean {near}?" if near else _makers(NEEDS[role], fitting), field=field)


def _makers(kind: str, fitting: list[str]) -> str:
    kinds = " or ".join(stage for stage, makes in MAKES.items() if kind in makes)
    if fitting:
        return f"give one of {listed(fitting)}, or put a stage of kind {kinds} before it"
    return f"put a stage of kind {kinds} before it"


def _stage_faults(name: str, stage: Any, recipe: Recipe) -> Iterator[Fault]:
    """What is wrong between a stage's own settings, and with those of the stage it reads."""
    at = f"stages.{name}"
    numbers = range(fewest_workers(recipe, stage), workers_of(recipe, stage) + 1)
    yield from next(filter(None, (list(_worker_faults(at, stage, workers)) for workers in numbers)), [])
    if isinstance(stage, PreferencesStage | HumanPreferencesStage | JudgeStage):
        sources = stage_inputs(stage)["responses"]
        source = recipe.stages.get(sources[0])
        if len(sources) == 1 and isinstance(source, SampleStage) and source.per_prompt < 2:
            problem = f"one response to a prompt leaves nothing to compare, and {name} compares them"
            yield Fault(problem, "draw at least two", field=f"stages.{sources[0]}.per_prompt")
    elif isinstance(stage, DpoStage):
        if stage.loss == "exo_pair" and stage.label_smoothing == 0:
            problem = "the loss exo_pair takes the logarithm of label_smoothing, which is 0"
            yield Fault(problem, "set it above 0, such as 0.001", field=f"{at}.label_smoothing")
    elif isinstance(stage, PpoStage | GroupStage) and recipe.resources.vllm is not None:
        yield from _vllm_faults(at, stage, workers_of(recipe, stage))
    elif isinstance(stage, EvaluateStage):
        if stage.model in stage.against:
            problem = f"{stage.model} is compared with itself"
            yield Fault(problem, "remove it from the opponents", field=f"{at}.against")
        for opponent in sorted({name for name in stage.against if stage.against.count(name) > 1}):
            yield Fault(f"{opponent} stands twice", "keep one of them", field=f"{at}.against")
    elif isinstance(stage, TournamentStage | OveroptimisationStage):
        yield from _policies_faults(at, stage, recipe)


def _worker_faults(at: str, stage: Any, workers: int) -> Iterator[Fault]:
    """Workers share each batch evenly, so that as many of them as you like take the steps that one would."""
    if workers == 1:
        return
    if isinstance(stage, PpoStage) or not trains_together(stage):
        return  # their parts may be unequal, or none
    if stage.batch_size % workers:
        accumulated = stage.batch_size * getattr(stage, "gradient_accumulation", 1)
        remedy = f"give a multiple of {workers}"
        if accumulated % workers == 0:
            remedy = f"set batch_size: {accumulated} and gradient_accumulation: 1, which takes the same steps"
        yield Fault(f"{workers} workers cannot share batches of {stage.batch_size}", remedy, field=f"{at}.batch_size")


def _sharding_faults(recipe: Recipe) -> Iterator[Fault]:
    """What stands against the models being sharded that several workers train (resources.sharding)."""
    sharding = recipe.resources.sharding
    if sharding == "none":
        return
    several = {name: stage for name, stage in recipe.stages.items() if trains_on_several(recipe, stage)}
    if not several:
        problem = f"{sharding} shards a model over the workers that train it, and no stage trains on more than one"
        yield Fault(problem, "set workers to 2 or more, or sharding to none", field="resources.sharding")
    for name, stage in several.items():
        if isinstance(stage, PpoStage) and recipe.resources.vllm is not None:
            problem = f"the vLLM server takes a whole adapter, and {sharding} leaves each worker a part of it"
            remedy = "set workers: 1 for this stage, resources.sharding: none, or remove resources.vllm"
            yield Fault(problem, remedy, field=f"stages.{name}.workers")
    if any(fewest_workers(recipe, stage) == 1 for stage in several.values()):
        problem = f"one worker alone cannot go on with what is sharded ({sharding})"
        yield Fault(problem, "set it to 2 or more", field="resources.min_workers")


def _vllm_faults(at: str, stage: PpoStage | GroupStage, workers: int) -> Iterator[Fault]:
    """What a policy in training needs so that a server can sample from it (resources.vllm)."""
    if isinstance(stage, GroupStage) and workers > 1:
        problem = f"{workers} workers would each send the vLLM server an adapter of their own"
        yield Fault(problem, "set workers: 1 for this stage, or remove resources.vllm", field=f"{at}.workers")
    if stage.lora is None:
        problem = "the vLLM server takes policies in training as adapters, and here all weights are trained"
        yield Fault(problem, "set lora, or remove resources.vllm", field=f"{at}.lora")
    if isinstance(stage, PpoStage) and stage.rollout_workers:
        problem = "the vLLM server draws the answers, and so would rollout_workers"
        yield Fault(problem, "set it to 0, or remove resources.vllm", field=f"{at}.rollout_workers")
    if isinstance(stage, PpoStage) and stage.importance_cap is None:
        problem = "vLLM samples with kernels of its own, so its tokens need importance weights"
        yield Fault(problem, "set it to 2.0", field=f"{at}.importance_cap")


def _policies_faults(at: str, stage: TournamentStage | OveroptimisationStage, recipe: Recipe) -> Iterator[Fault]:
    if stage.model in stage.policies:
        yield Fault(f"{stage.model} is compared with itself", "remove it from the policies", field=f"{at}.policies")
    for policy in sorted({name for name in stage.policies if stage.policies.count(name) > 1}):
        yield Fault(f"{policy} stands twice", "keep one of them", field=f"{at}.policies")
    if isinstance(stage, OveroptimisationStage):
        for policy in dict.fromkeys(stage.policies):
            source = recipe.stages.get(policy)
            if source is not None and getattr(source, "snapshot_every", None) is None:
                problem = f"{policy} keeps no snapshots, and its end alone shows no way there"
                yield Fault(problem, "set snapshot_every", field=f"stages.{policy}.snapshot_every")


def _gate_faults(gate: Gate, stages: Mapping[str, Any]) -> Iterator[Fault]:
    evaluations = [name for name, stage in stages.items() if isinstance(stage, EvaluateStage)]
    evaluation = stages.get(gate.evaluation)
    known: list[str] | None = None
    if isinstance(evaluation, EvaluateStage):
        known = evaluation_metric_names(evaluation)
    elif evaluation is None:
        yield Fault(f"no stage {gate.evaluation}", suggestion(gate.evaluation, evaluations), field="gate.evaluation")
    else:
        remedy = f"name one of kind evaluate: {listed(evaluations)}"
        yield Fault(f"{gate.evaluation} is of kind {evaluation.kind}", remedy, field="gate.evaluation")
    for index, condition in enumerate(gate.conditions):
        at = f"gate.conditions.{index}"
        if condition.against is not None:
            if isinstance(evaluation, EvaluateStage):
                yield from _against_faults(at, gate.evaluation, condition, evaluation)
            continue
        if known is not None and condition.metric not in known:
            near = nearest(condition.metric, known)
            remedy = (f"did you mean {near}? " if near else "") + f"it measures {listed(known)}"
            yield Fault(f"{gate.evaluation} does not measure {condition.metric}", remedy, field=f"{at}.metric")
        if condition.above is None and condition.below is None:
            yield Fault("the condition has no bound", "set above, below or both", field=at)
        elif condition.above is not None and condition.below is not None and condition.above >= condition.below:
            problem = f"no value is above {condition.above} and below {condition.below}"
            yield Fault(problem, "set above to less than below", field=at)


def _against_faults(at: str, name: str, condition: Condition, evaluation: EvaluateStage) -> Iterator[Fault]:
    """What is wrong with a condition that holds the candidate against another version."""
    if condition.against not in evaluation.against:
        problem = f"{name} does not compare with {condition.against}"
        remedy = f"name one of {listed(evaluation.against)}, or add it to stages.{name}.against"
        yield Fault(problem, remedy, field=f"{at}.against")
    wanted = resolve(condition, evaluation)
    if isinstance(wanted, str):
        names = [*directions(evaluation), *(f"win_rate.{judge}" for judge in evaluation_judges(evaluation))]
        near = nearest(condition.metric, [one for one in names if one != condition.metric])
        remedy = f"did you mean {near}?" if near else f"it measures {listed(names)}" if names else "add metrics to it"
        if condition.metric in names:
            remedy = "set better: higher, or better: lower"
        yield Fault(wanted, remedy, field=f"{at}.metric")
