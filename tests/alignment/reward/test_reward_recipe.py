"""Rewards in a recipe: what is wrong with them is one line each, and what their files hold is part of the cache key."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment.checks.data import RecipeData
from alignment.checks.graph import wiring_faults
from alignment.checks.rewards import reward_faults
from alignment.data.prompts import numbered_prompts
from alignment.errors import InputError
from alignment.recipe.files import resolve_data, with_absolute_data
from alignment.recipe.graph import stage_inputs
from alignment.recipe.load import load_recipe

MakeRecipe = Callable[..., Path]
FUNCTION = "def score(prompts, responses, references):\n    return [1.0] * len(responses)\n"


@pytest.fixture
def write(make_recipe: MakeRecipe, tmp_path: Path) -> Callable[..., Path]:
    """A recipe with one grpo stage (and the tiny recipe's others) with these rewards."""

    def write(*rewards: dict[str, Any], **settings: Any) -> Path:
        stage = {"kind": "grpo", "model": "base", "rewards": list(rewards)} | settings
        (tmp_path / "rewards.py").write_text(FUNCTION, "utf-8")
        return make_recipe(tmp_path, changes={"stages.policy": stage})

    return write


def lines(path: Path) -> list[str]:
    """The recipe's faults, without the file and its line."""
    try:
        recipe = load_recipe(path)
    except InputError as error:
        return [str(fault).split(":", 2)[-1] for fault in error.faults]
    files = resolve_data(recipe, path)
    data = RecipeData(numbered_prompts(files["prompts"])[0])
    return [str(fault) for fault in [*wiring_faults(recipe), *reward_faults(recipe, files, data.prompts)]]


@pytest.mark.parametrize(
    ("reward", "line"),
    [
        ({"kind": "numbr"}, "stages.policy.rewards.0: unknown kind 'numbr'; did you mean number?"),
        ({"kind": "number", "decimls": 3}, "stages.policy.rewards.0.decimls: unknown key; did you mean decimals?"),
        (
            {"weight": 2},
            "stages.policy.rewards.0: the reward has no kind; add `kind: ` and one of model, number, exact, ",
        ),
        ({"kind": "regex", "pattern": "("}, "stages.policy.rewards.0: the pattern is no regular expression: "),
        (
            {"kind": "json_schema", "definition": {"type": 3}},
            "stages.policy.rewards.0: the definition is no JSON Schema",
        ),
        ({"kind": "length", "unit": "pages"}, "stages.policy.rewards.0.unit: 'pages' is not one of words, sentences, "),
        ({"kind": "model", "model": "nothing"}, "stages.policy.rewards: no stage nothing; "),
        ({"kind": "model", "model": "dpo"}, "stages.policy.rewards: dpo makes a model, not a reward model; "),
        ({"kind": "function", "function": "gone.py:score"}, "stages.policy.rewards.0.function: no file "),
        (
            {"kind": "function", "function": "rewards.py:skore"},
            "stages.policy.rewards.0.function: rewards.py defines no skore",
        ),
        (
            {"kind": "function", "function": "no.such.module:x"},
            "stages.policy.rewards.0.function: no module no.such.module",
        ),
        ({"kind": "function", "function": "rewards.py"}, "stages.policy.rewards.0.function: 'rewards.py'"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_a_wrong_reward_is_one_line(reward: dict[str, Any], line: str, write: Callable[..., Path]) -> None:
    [found] = lines(write(reward))
    assert line in found


def test_prompts_without_a_reference_are_named_by_their_rows(write: Callable[..., Path]) -> None:
    """Of the 24 prompts every third has a reference; the stage trains on those that are not held out."""
    path = write({"kind": "exact"}, {"kind": "length", "at_most": 3})
    recipe = load_recipe(path)
    files = resolve_data(recipe, path)
    prompts = numbered_prompts(files["prompts"])[0]
    faults = reward_faults(recipe, files, prompts)
    assert faults
    assert all(fault.file == str(files["prompts"]) and fault.field == "reference" for fault in faults)
    without = {row for row, prompt in prompts if prompt.reference is None}
    assert {fault.row for fault in faults} < without
    assert "the reward exact compares with it" in faults[0].problem


def test_rewards_of_one_kind_need_names(write: Callable[..., Path]) -> None:
    [line] = lines(write({"kind": "length", "at_most": 3}, {"kind": "length", "at_most": 5}))
    assert "two rewards are called length; give one of them a name" in line


def test_a_reward_model_is_an_input(write: Callable[..., Path]) -> None:
    recipe = load_recipe(write({"kind": "model", "model": "reward"}, {"kind": "length", "at_most": 3}))
    assert stage_inputs(recipe.stages["policy"])["rewards"] == ("reward",)
    assert wiring_faults(recipe) == []


def test_a_functions_file_travels_with_the_recipe(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write({"kind": "function", "function": "rewards.py:score"})
    recipe = load_recipe(path)
    data = resolve_data(recipe, path)
    assert data["function:score"] == tmp_path / "rewards.py"
    moved = with_absolute_data(recipe, data)
    assert moved.stages["policy"].rewards[0].function == f"{tmp_path}/rewards.py:score"  # type: ignore[union-attr]
    changed = load_recipe(path, [f"stages.policy.rewards.0.function={tmp_path / 'rewards.py'}:score"])
    assert resolve_data(changed, path) == data


def test_what_the_file_holds_is_part_of_the_key_and_its_place_is_not(
    write: Callable[..., Path], tmp_path: Path, make_recipe: MakeRecipe
) -> None:
    from alignment.records import Artifact
    from alignment.workspace import Workspace
    from flows.pipeline.stage_task import make_job

    base = Artifact(name="base", kind="model", version=1, digest="0", path=str(tmp_path), key="base")

    def key(path: Path) -> str:
        recipe = load_recipe(path)
        data = resolve_data(recipe, path)
        job = make_job("policy", recipe, {"base": base}, data, Workspace(tmp_path / "space"))
        assert job.data["function:score"].name == path.parent.joinpath("rewards.py").name
        return job.key

    path = write({"kind": "function", "function": "rewards.py:score"})
    first = key(path)
    other = tmp_path / "other"
    other.mkdir()
    for name in ("rewards.py", "prompts.jsonl", "demonstrations.jsonl", "rubric.yaml", path.name):
        (other / name).write_bytes((tmp_path / name).read_bytes())
    assert key(other / path.name) == first
    (other / "rewards.py").write_text(FUNCTION.replace("1.0", "2.0"), "utf-8")
    assert key(other / path.name) != first
