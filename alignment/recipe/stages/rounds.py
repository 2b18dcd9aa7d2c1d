"""Rounds: stages that are repeated, each time with the newest policy. They are written out when a recipe is read.

What comes after sees stages as any others, with names of their own: of three rounds of ``dpo`` these are ``dpo_1``,
``dpo_2`` and ``dpo_3``. So each is cached by what decides it, resumes, and stands in plan, report and lineage.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from alignment.recipe.base import BASE, Name, Settings
from alignment.recipe.stages.spec import StageSettings

LONGEST_NAME = 40


class Rounds(Settings):
    """Stages that are repeated: online DPO is `[responses, preferences, dpo]`, and `[responses, chosen, sft]`
    rejection-sampling fine-tuning.

    In each round a repeated stage reads the round's own artifacts, and what the first round begins with (the model of
    the last of them that makes a policy) is replaced by the policy that the round before has made. Stages after them
    read the last round's: `dpo` is there the newest, and `dpo_1` the first. A stage with a `limit` of prompts asks
    others in each round, and every draw has a seed of the round.
    """

    times: Annotated[int, Field(ge=1, le=99)]
    """How many rounds there are."""
    stages: Annotated[tuple[Name, ...], Field(min_length=1)]
    """The stages that are repeated, which stand one after another in the recipe and end in a policy."""


def rounds_problem(rounds: Rounds, stages: Mapping[str, StageSettings]) -> str | None:
    """What is wrong with a recipe's rounds, in a line; None where they can be written out."""
    order = list(stages)
    for name in rounds.stages:
        if name not in stages:
            return f"there is no stage {name}: name stages of the recipe"
        if rounds.stages.count(name) > 1:
            return f"{name} stands twice: name each stage once"
    first = min(map(order.index, rounds.stages))
    between = order[first : first + len(rounds.stages)]
    if set(between) != set(rounds.stages):
        return f"{next(name for name in between if name not in rounds.stages)} stands between them: move it, or name it"
    if _policy(rounds, stages) is None:
        return "none of them trains a policy, so that each round would repeat the one before: name one that does"
    for name in rounds.stages:
        longest = round_name(name, rounds.times)
        if len(longest) > LONGEST_NAME:
            return f"{longest} has more than {LONGEST_NAME} letters: give the stage a shorter name"
    taken = {round_name(name, turn) for name in rounds.stages for turn in range(1, rounds.times + 1)} & set(stages)
    return f"{min(taken)} is a stage already, and the name of a round: rename it" if taken else None


def round_name(name: str, turn: int) -> str:
    """The name of a repeated stage in the round ``turn``, from 1."""
    return f"{name}_{turn}"


def round_seed(seed: int, turn: int) -> int:
    """The seed of a round: the recipe's own in the first, and another one, below 2³¹, in each that follows."""
    if turn == 1:
        return seed
    return int.from_bytes(hashlib.sha256(f"round/{seed}/{turn}".encode()).digest()[:4], "big") >> 1


def written_out(
    rounds: Rounds, stages: Mapping[str, StageSettings], gate: Mapping[str, Any] | None
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The stages with every round as stages of their own, and the gate that reads them, as values for a recipe.

    Only what was set is written, so that what follows from other settings still does.
    """
    repeated = [name for name in stages if name in rounds.stages]
    policy = _policy(rounds, stages)
    assert policy is not None
    begins = stages[policy].inputs().get("model", (BASE,))[0]
    found: dict[str, Any] = {}
    last = {name: round_name(name, rounds.times) for name in repeated}
    for name, stage in stages.items():
        if name == repeated[0]:
            for turn in range(1, rounds.times + 1):
                newest = {begins: round_name(policy, turn - 1)} if turn > 1 and begins not in repeated else {}
                for place, one in enumerate(repeated):
                    before = {later: round_name(later, turn - 1) for later in repeated[place:] if turn > 1}
                    names = before | {earlier: round_name(earlier, turn) for earlier in repeated[:place]}
                    values = _renamed(_values(stages[one]), stages[one], names)
                    if values.get("model", BASE) in newest and "model" in stages[one].inputs():
                        values["model"] = newest[values.get("model", BASE)]
                    found[round_name(one, turn)] = values | {"round": turn}
        if name not in rounds.stages:
            found[name] = _renamed(_values(stage), stage, last)
    return found, None if gate is None else _renamed_gate(gate, last)


def _policy(rounds: Rounds, stages: Mapping[str, StageSettings]) -> str | None:
    """The last of the repeated stages that trains a policy from another one."""
    makers = [
        name for name, stage in stages.items()
        if name in rounds.stages and "policy" in stage.spec.makes and "model" in stage.spec.reads
    ]  # fmt: skip
    return makers[-1] if makers else None


def _values(stage: StageSettings) -> dict[str, Any]:
    return {"kind": stage.kind, **stage.model_dump(mode="json", exclude_unset=True)}


def _renamed(values: dict[str, Any], stage: StageSettings, names: Mapping[str, str]) -> dict[str, Any]:
    """A stage's values with the stages that it reads under other names, those of its judge and its rewards included."""
    found = {key: _named(value, names) if key in stage.spec.reads else value for key, value in values.items()}
    for key in ("calibrated_by", "calibration"):
        if key in found:
            found[key] = _named(found[key], names)
    for key in ("judge", "writer"):
        if isinstance(found.get(key), dict):
            found[key] = _renamed_inside(found[key], names)
    if isinstance(found.get("rewards"), list):
        found["rewards"] = [_renamed_inside(reward, names) for reward in found["rewards"]]
    return found


def _renamed_inside(values: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """A judge's or a reward's values, whose ``model`` is a stage's where no endpoint names it."""
    found = {key: _named(value, names) if key in ("model", "calibrated_by") else value for key, value in values.items()}
    if isinstance(found.get("judge"), dict):
        found["judge"] = _renamed_inside(found["judge"], names)
    return found


def _renamed_gate(gate: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The gate's evaluation, and the opponents in its conditions."""
    conditions = []
    for condition in gate["conditions"]:
        metric = ".".join(names.get(part, part) for part in condition["metric"].split("."))
        conditions.append({**condition, "metric": metric, "against": _named(condition.get("against"), names)})
    return {**gate, "evaluation": names.get(gate["evaluation"], gate["evaluation"]), "conditions": conditions}


def _named(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return names.get(value, value)
    if isinstance(value, Sequence):
        return [names.get(one, one) if isinstance(one, str) else one for one in value]
    return value
