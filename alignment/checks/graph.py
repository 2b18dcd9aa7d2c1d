"""What is wrong with a recipe's stages as such: inputs that nothing makes, gates that ask for what is not measured."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from alignment.checks.preference_losses import dpo_faults, kto_faults
from alignment.checks.pretraining.wiring import pretraining_faults
from alignment.data.columns import listed
from alignment.errors import Fault, nearest, suggestion
from alignment.evaluation.gate import CLAIMS, Bound, resolve
from alignment.evaluation.metric_names import directions, evaluation_judges, evaluation_metric_names
from alignment.recipe.base import BASE, CHAMPION, MADE_BASE, Lora, Product
from alignment.recipe.error_messages import STAGE_KINDS
from alignment.recipe.gate import Condition, Gate
from alignment.recipe.graph import (
    fewest_workers,
    of_type,
    stage_inputs,
    trains_on_several,
    trains_together,
    workers_of,
)
from alignment.recipe.recipe import Recipe
from alignment.recipe.stages.evaluate import EvaluateStage
from alignment.recipe.stages.experiments.overoptimisation import OveroptimisationStage
from alignment.recipe.stages.experiments.tournament import OTHER_HALF, TournamentStage, chosen_by
from alignment.recipe.stages.grpo import GroupStage
from alignment.recipe.stages.online import OnlineStage
from alignment.recipe.stages.ppo import PpoStage
from alignment.recipe.stages.spec import StageSettings

RESERVED = {BASE: "the model that all start from", CHAMPION: "the version that is promoted"}
PRODUCTS: dict[Product, str] = {
    "policy": "a model",
    "tokenizer": "a tokenizer",
    "responses": "responses",
    "preferences": "preferences",
    "feedback": "answers with thumbs",
    "demonstrations": "demonstrations",
    "held_out_prompts": "held-out prompts",
    "reward_model": "a reward model",
    "pair_classifier": "a pair classifier",
    "calibration": "a judge's calibration",
    "evaluation": "an evaluation",
    "experiment": "an experiment",
    "scores": "scored answers",
    "spans": "marked answers",
}


def wiring_faults(recipe: Recipe) -> list[Fault]:
    """Faults of the stages' inputs and of the gate; each names its field, and the file is the recipe."""
    faults: list[Fault] = []
    made: dict[str, tuple[Product, ...]] = {} if recipe.model.base == MADE_BASE else {BASE: ("policy",)}
    for name, stage in recipe.stages.items():
        if name in RESERVED:
            problem = f"{name} is the name of {RESERVED[name]}"
            faults.append(Fault(problem, "give the stage another name", field=f"stages.{name}"))
        faults += _input_faults(name, stage, made, recipe)
        faults += _stage_faults(name, stage, recipe)
        made[name] = stage.products()
        if stage.makes_base():
            made[BASE] = stage.products()
    faults += _sharding_faults(recipe)
    faults += pretraining_faults(recipe)
    return faults + (list(_gate_faults(recipe.gate, recipe.stages)) if recipe.gate else [])


def _input_faults(
    name: str, stage: StageSettings, made: Mapping[str, tuple[Product, ...]], recipe: Recipe
) -> Iterator[Fault]:
    for role, sources in stage_inputs(stage).items():
        field, product = f"stages.{name}.{role}", stage.spec.reads[role]
        fitting = [source for source, products in made.items() if product in products]
        for source in sources:
            if source == CHAMPION and role in stage.spec.champion_roles:
                continue  # the registry gives it, when the stage runs
            if product in made.get(source, ()):
                continue
            if source == name:
                problem = "a stage cannot read its own output"
            elif source in made:
                makes = listed([PRODUCTS[other] for other in made[source]])
                problem = f"{source} makes {makes}, not {PRODUCTS[product]}"
            elif source == BASE:
                problem = "no stage before it has made the model that the recipe begins with"
            elif source in recipe.stages:
                problem = f"{source} comes later; stages run in the order they are written"
            else:
                problem = f"no stage {source}"
            near = nearest(source, fitting) if source not in recipe.stages else None
            yield Fault(problem, f"did you mean {near}?" if near else _makers(product, fitting), field=field)


def _makers(product: Product, fitting: list[str]) -> str:
    kinds = " or ".join(kind for kind, settings in STAGE_KINDS.items() if product in settings.spec.makes)
    if fitting:
        return f"give one of {listed(fitting)}, or put a stage of kind {kinds} before it"
    return f"put a stage of kind {kinds} before it"


def _stage_faults(name: str, stage: StageSettings, recipe: Recipe) -> Iterator[Fault]:
    """What is wrong between a stage's own settings, and with those of the stage it reads."""
    at, resources = f"stages.{name}", recipe.resources
    numbers = range(fewest_workers(resources, stage), workers_of(resources, stage) + 1)
    yield from next(filter(None, (list(_worker_faults(at, stage, workers)) for workers in numbers)), [])
    if stage.compares_responses():
        sources = stage_inputs(stage)["responses"]
        source = recipe.stages.get(sources[0])
        if len(sources) == 1 and source is not None and source.answers_per_prompt() == 1:
            problem = f"one response to a prompt leaves nothing to compare, and {name} compares them"
            yield Fault(problem, "draw at least two", field=f"stages.{sources[0]}.per_prompt")
    if resources.vllm is not None:
        yield from _dora_faults(name, stage)
    if stage.spec.samples and trains_together(stage) and resources.vllm is not None:
        yield from _vllm_faults(at, stage)
    yield from _OWN.get(stage.kind, _nothing_more)(at, stage, recipe)


def _nothing_more(_at: str, _stage: Any, _recipe: Recipe) -> Iterator[Fault]:
    return iter(())


def _evaluate_faults(at: str, stage: EvaluateStage, _recipe: Recipe) -> Iterator[Fault]:
    if stage.model in stage.against:
        problem = f"{stage.model} is compared with itself"
        yield Fault(problem, "remove it from the opponents", field=f"{at}.against")
    for opponent in sorted({name for name in stage.against if stage.against.count(name) > 1}):
        yield Fault(f"{opponent} stands twice", "keep one of them", field=f"{at}.against")


def _worker_faults(at: str, stage: StageSettings, workers: int) -> Iterator[Fault]:
    """Workers share each batch evenly, so that as many of them as you like take the steps that one would."""
    batch = stage.even_batch()
    if workers == 1 or batch is None or batch[0] % workers == 0:
        return
    size, accumulation = batch
    remedy = f"give a multiple of {workers}"
    if size * accumulation % workers == 0:
        remedy = f"set batch_size: {size * accumulation} and gradient_accumulation: 1, which takes the same steps"
    yield Fault(f"{workers} workers cannot share batches of {size}", remedy, field=f"{at}.batch_size")


def _sharding_faults(recipe: Recipe) -> Iterator[Fault]:
    """What stands against the models being sharded that several workers train (resources.sharding)."""
    resources = recipe.resources
    if resources.sharding == "none":
        return
    several = {name: stage for name, stage in recipe.stages.items() if trains_on_several(resources, stage)}
    if not several:
        problem = f"{resources.sharding} shards a model over the workers that train it, and no stage trains on several"
        yield Fault(problem, "set workers to 2 or more, or sharding to none", field="resources.sharding")
    for name, stage in several.items():
        if resources.vllm is not None and stage.spec.samples:
            problem = f"the vLLM server takes a whole adapter, and {resources.sharding} leaves each worker a part of it"
            remedy = "set workers: 1 for this stage, resources.sharding: none, or remove resources.vllm"
            yield Fault(problem, remedy, field=f"stages.{name}.workers")
    if any(fewest_workers(resources, stage) == 1 for stage in several.values()):
        problem = f"one worker alone cannot go on with what is sharded ({resources.sharding})"
        yield Fault(problem, "set it to 2 or more", field="resources.min_workers")


def _vllm_faults(at: str, stage: Any) -> Iterator[Fault]:
    """What a policy in training needs so that a server can sample from it (resources.vllm)."""
    if stage.adapter_trained() is None:
        problem = "the vLLM server takes policies in training as adapters, and here all weights are trained"
        yield Fault(problem, "set lora, or remove resources.vllm", field=f"{at}.lora")


def _dora_faults(name: str, stage: StageSettings) -> Iterator[Fault]:
    """Policies that a vLLM server is sent are adapters, of which it knows those of Hu et al. 2021 alone."""
    lora = stage.adapter_trained()
    if isinstance(lora, Lora) and lora.dora and "policy" in stage.spec.makes:
        problem = "the vLLM server takes adapters, and none with lengths of their own"
        yield Fault(problem, "set it to false, or remove resources.vllm", field=f"stages.{name}.lora.dora")


def _online_faults(at: str, stage: OnlineStage, recipe: Recipe) -> Iterator[Fault]:
    if recipe.resources.vllm is not None and stage.rollout_workers:
        problem = "the vLLM server draws the answers, and so would rollout_workers"
        yield Fault(problem, "set it to 0, or remove resources.vllm", field=f"{at}.rollout_workers")


def _group_faults(at: str, stage: GroupStage, recipe: Recipe) -> Iterator[Fault]:
    yield from _online_faults(at, stage, recipe)
    if stage.environment is None:
        return
    if stage.rollout_workers:  # max_staleness needs them
        problem = "episodes with an environment are played where the policy trains, and not by rollout workers"
        yield Fault(problem, "set it to 0, or remove environment", field=f"{at}.rollout_workers")
    if (stage.workers or 1) > 1:
        problem = "episodes with an environment are played in one process"
        yield Fault(problem, "set it to 1, or remove environment", field=f"{at}.workers")


def _ppo_faults(at: str, stage: PpoStage, recipe: Recipe) -> Iterator[Fault]:
    yield from _online_faults(at, stage, recipe)
    source = None if stage.reward is None else recipe.stages.get(stage.reward)
    if stage.critic == "reward" and source is not None and source.encoder_used() is not None:
        problem = f"{stage.reward} is an encoder, which reads whole texts by its own tokenizer and values no token"
        yield Fault(problem, "set it to policy or shared", field=f"{at}.critic")
    if recipe.resources.vllm is not None and stage.importance_cap is None and stage.importance != "off":
        problem = "vLLM samples with kernels of its own, so its tokens need importance weights"
        yield Fault(problem, "set it to 2.0", field=f"{at}.importance_cap")


def _policies_faults(at: str, stage: TournamentStage | OveroptimisationStage, _recipe: Recipe) -> Iterator[Fault]:
    if stage.model in stage.policies:
        yield Fault(f"{stage.model} is compared with itself", "remove it from the policies", field=f"{at}.policies")
    for policy in sorted({name for name in stage.policies if stage.policies.count(name) > 1}):
        yield Fault(f"{policy} stands twice", "keep one of them", field=f"{at}.policies")


def _overoptimisation_faults(at: str, stage: OveroptimisationStage, recipe: Recipe) -> Iterator[Fault]:
    yield from _policies_faults(at, stage, recipe)
    for policy in dict.fromkeys(stage.policies):
        source = recipe.stages.get(policy)
        if source is not None and source.snapshot_steps() is None:
            problem = f"{policy} keeps no snapshots, and its end alone shows no way there"
            yield Fault(problem, "set snapshot_every", field=f"stages.{policy}.snapshot_every")


_OWN: dict[str, Callable[[str, Any, Recipe], Iterator[Fault]]] = {  # what only one kind can get wrong
    "dpo": dpo_faults,
    "kto": kto_faults,
    "ppo": _ppo_faults,
    "grpo": _group_faults,
    "rloo": _group_faults,
    "evaluate": _evaluate_faults,
    "tournament": _policies_faults,
    "overoptimisation": _overoptimisation_faults,
}


def _gate_faults(gate: Gate, stages: Mapping[str, StageSettings]) -> Iterator[Fault]:
    evaluations = dict(of_type(stages, EvaluateStage))
    evaluation = evaluations.get(gate.evaluation)
    known: list[str] | None = None
    if evaluation is not None:
        known = evaluation_metric_names(evaluation)
    elif gate.evaluation not in stages:
        yield Fault(f"no stage {gate.evaluation}", suggestion(gate.evaluation, evaluations), field="gate.evaluation")
    else:
        remedy = f"name one of kind evaluate: {listed(list(evaluations))}"
        yield Fault(f"{gate.evaluation} is of kind {stages[gate.evaluation].kind}", remedy, field="gate.evaluation")
    if evaluation is not None:
        yield from _choice_faults(gate.evaluation, evaluation, stages)
        if evaluation.split == "train":
            problem = f"the gate decides by {gate.evaluation}, which asks prompts that are trained on"
            yield Fault(problem, "set it to held out, or name another", field=f"stages.{gate.evaluation}.split")
    for index, condition in enumerate(gate.conditions):
        at = f"gate.conditions.{index}"
        if condition.against is not None:
            if evaluation is not None:
                yield from _against_faults(at, gate.evaluation, condition, evaluation)
            continue
        if known is not None and condition.metric not in known:
            near = nearest(condition.metric, known)
            remedy = (f"did you mean {near}? " if near else "") + f"it measures {listed(known)}"
            yield Fault(f"{gate.evaluation} does not measure {condition.metric}", remedy, field=f"{at}.metric")
        yield from _wrong_end_faults(at, condition)
        if condition.above is None and condition.below is None:
            yield Fault("the condition has no bound", "set above, below or both", field=at)
        elif condition.above is not None and condition.below is not None and condition.above >= condition.below:
            problem = f"no value is above {condition.above} and below {condition.below}"
            yield Fault(problem, "set above to less than below", field=at)


def _choice_faults(name: str, evaluation: EvaluateStage, stages: Mapping[str, StageSettings]) -> Iterator[Fault]:
    """A gate's evaluation on prompts that chose what it evaluates: the best of several was lucky on them."""
    if evaluation.prompts is not None:
        return
    for tournament, stage in chosen_by(stages, evaluation.model).items():
        other = OTHER_HALF.get(stage.part)
        if other is None:
            problem = f"{tournament} chose on all held-out prompts, and leaves {name} none that took no part in it"
            yield Fault(problem, "set it to first half, its default", field=f"stages.{tournament}.part")
        elif evaluation.part != other:
            problem = f"{tournament} chose {evaluation.model} on the {stage.part}, and {name} asks {evaluation.part}"
            yield Fault(problem, f"set it to {other}, or leave it out", field=f"stages.{name}.part")


def _wrong_end_faults(at: str, condition: Condition) -> Iterator[Fault]:
    """A bound on the far end of an interval: the wider the interval, the worse is what it lets through."""
    bounds: dict[Bound, float | None] = {"above": condition.above, "below": condition.below}
    stem, _, end = condition.metric.rpartition(".")
    for bound, value in bounds.items():
        if value is None or f".{end}" not in CLAIMS.values() or CLAIMS[bound] == f".{end}":
            continue
        problem = f"the {end} end of an interval is {bound} {value:g} for worse models too, where prompts are few"
        of = stem.split(".")
        remedy = "set against and a margin in its place"
        if of[0] == "win_rate" and len(of) == 3:
            remedy = f"{{metric: win_rate.{of[2]}, against: {of[1]}, margin: 0.05}} asks that it is no worse"
        yield Fault(problem, remedy, field=f"{at}.{bound}")


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
