"""Rounds: stages repeated with the newest policy, written out as stages of their own."""

import json
from pathlib import Path
from typing import Any

import pytest

from alignment.checks.graph import wiring_faults
from alignment.checks.recipe import placed
from alignment.data.split import limited
from alignment.errors import InputError
from alignment.recipe.graph import stage_inputs
from alignment.recipe.load import dump_recipe, load_recipe
from alignment.recipe.recipe import Recipe
from alignment.records import Message, Prompt

RATERS = {"rubric": "rubric.yaml"}
STAGES = {
    "sft": {"kind": "sft"},
    "reward": {"kind": "reward", "preferences": "votes"},
    "responses": {"kind": "sample", "model": "sft", "limit": 5},
    "preferences": {"kind": "preferences", "responses": "responses", "raters": RATERS},
    "dpo": {"kind": "dpo", "model": "sft", "preferences": "preferences"},
    "evaluation": {"kind": "evaluate", "model": "dpo", "against": ["sft", "dpo_1"], "raters": RATERS,
                   "reward": "reward"},
}  # fmt: skip
ONLINE = {"times": 3, "stages": ["responses", "preferences", "dpo"]}


def write(folder: Path, stages: dict[str, Any], rounds: Any, **more: Any) -> Path:
    first = {"votes": {"kind": "preference_file"}}
    recipe = {"name": "t", "model": {"base": "x"}, "stages": first | stages, "rounds": rounds, **more}
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe, indent=1))
    return path


def read_by(recipe: Recipe) -> dict[str, dict[str, tuple[str, ...]]]:
    return {name: stage_inputs(stage) for name, stage in recipe.stages.items()}


def test_each_round_begins_with_the_policy_of_the_round_before(tmp_path: Path) -> None:
    gate = {"evaluation": "evaluation", "conditions": [{"metric": "win_rate.dpo_1.rubric.low", "above": 0.4}]}
    recipe = load_recipe(write(tmp_path, STAGES, ONLINE, gate=gate))
    assert list(recipe.stages) == [
        "votes", "sft", "reward", "responses_1", "preferences_1", "dpo_1", "responses_2", "preferences_2", "dpo_2",
        "responses_3", "preferences_3", "dpo_3", "evaluation",
    ]  # fmt: skip
    reads = read_by(recipe)
    assert reads["responses_1"] == {"model": ("sft",)}
    assert reads["responses_3"] == {"model": ("dpo_2",)}
    assert reads["preferences_2"] == {"responses": ("responses_2",)}
    assert reads["dpo_1"] == {"model": ("sft",), "preferences": ("preferences_1",)}
    assert reads["dpo_3"] == {"model": ("dpo_2",), "preferences": ("preferences_3",)}
    assert reads["evaluation"]["model"] == ("dpo_3",)
    assert reads["evaluation"]["against"] == ("sft", "dpo_1")
    assert recipe.rounds is None
    assert wiring_faults(recipe) == []


def test_what_is_written_out_is_read_back_as_it_is(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, STAGES, ONLINE))
    again = tmp_path / "again.yaml"
    again.write_text(dump_recipe(recipe))
    assert load_recipe(again) == recipe


def test_settings_of_the_stage_are_those_of_every_round(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, STAGES, ONLINE), ["stages.dpo.beta=0.7", "rounds.times=2"])
    betas = {name: stage.beta for name, stage in recipe.stages.items() if stage.kind == "dpo"}  # type: ignore[union-attr]
    assert betas == {"dpo_1": 0.7, "dpo_2": 0.7}


def test_a_policy_that_begins_at_the_base_goes_on_from_the_newest(tmp_path: Path) -> None:
    """Rejection-sampling fine-tuning: nothing is named, so that both begin with the base in the first round."""
    stages = {
        "responses": {"kind": "sample"},
        "best": {"kind": "rejection_sampling", "responses": "responses", "rewards": [{"kind": "length", "at_most": 9}]},
        "sft": {"kind": "sft", "demonstrations": "best"},
    }
    recipe = load_recipe(write(tmp_path, stages, {"times": 2, "stages": ["responses", "best", "sft"]}))
    reads = read_by(recipe)
    assert reads["responses_1"]["model"] == reads["sft_1"]["model"] == ("base",)
    assert reads["responses_2"]["model"] == reads["sft_2"]["model"] == ("sft_1",)
    assert reads["sft_2"]["demonstrations"] == ("best_2",)


def test_judges_and_rewards_of_repeated_stages_are_those_of_the_round(tmp_path: Path) -> None:
    """A reward model that is trained in each round is the round's own; one from before stays."""
    stages = {
        "sft": {"kind": "sft"},
        "fixed": {"kind": "reward", "preferences": "votes"},
        "responses": {"kind": "sample", "model": "sft", "best_of": 2, "reward": "fixed"},
        "preferences": {"kind": "preferences", "responses": "responses", "raters": RATERS},
        "reward": {"kind": "reward", "preferences": "preferences", "model": "sft"},
        "grpo": {"kind": "grpo", "model": "sft", "rewards": [{"kind": "model", "model": "reward"},
                 {"kind": "model", "model": "fixed", "name": "old"}]},
    }  # fmt: skip
    repeated = ["responses", "preferences", "reward", "grpo"]
    reads = read_by(load_recipe(write(tmp_path, stages, {"times": 2, "stages": repeated})))
    assert reads["responses_2"]["reward"] == ("fixed",)
    assert reads["grpo_2"]["rewards"] == ("reward_2", "fixed")
    assert reads["grpo_2"]["model"] == ("grpo_1",)


def test_each_round_has_a_seed_of_its_own_and_the_first_that_of_the_recipe(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, STAGES, ONLINE, seed=5))
    seeds = [recipe.run_settings(recipe.stages[f"responses_{turn}"]).seed for turn in (1, 2, 3)]
    assert seeds[0] == recipe.run_settings().seed == 5
    assert len(set(seeds)) == 3
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_each_round_asks_the_prompts_that_follow() -> None:
    prompts = [Prompt(id=f"{place}", messages=(Message(role="user", content="?"),)) for place in (3, 1, 4, 0, 2)]

    def asked(limit: int | None, turn: int) -> list[str]:
        return [one.id for one in limited(prompts, limit, turn)]

    assert asked(2, 1) == ["1", "0"]  # the first two by their ids, in the order of the file
    assert asked(2, 2) == ["3", "2"]
    assert asked(2, 3) == ["4", "0"]  # the last, and the first again
    assert asked(None, 2) == asked(5, 3) == ["3", "1", "4", "0", "2"]


@pytest.mark.parametrize(
    ("rounds", "said"),
    [
        ({"times": 2, "stages": ["dpoo"]}, "there is no stage dpoo"),
        ({"times": 2, "stages": ["dpo", "dpo"]}, "dpo stands twice"),
        ({"times": 2, "stages": ["responses", "dpo"]}, "preferences stands between them"),
        ({"times": 2, "stages": ["responses", "preferences"]}, "none of them trains a policy"),
        ({"times": 2, "stages": []}, "empty"),
        ({"times": 0, "stages": ["dpo"]}, "greater than or equal to 1"),
        ({"times": 2}, "missing"),
        (3, "mapping"),
    ],
)
def test_rounds_that_cannot_be_are_one_line(rounds: Any, said: str, tmp_path: Path) -> None:
    path = write(tmp_path, STAGES, rounds)
    with pytest.raises(InputError) as caught:
        load_recipe(path)
    (fault,) = caught.value.faults
    assert str(fault).startswith(f"{path}:")
    assert (fault.field or "").startswith("rounds")
    assert said in str(fault)


def test_names_that_are_taken_or_too_long_are_refused(tmp_path: Path) -> None:
    taken = {**STAGES, "dpo_2": STAGES["evaluation"]}
    with pytest.raises(InputError, match="dpo_2 is a stage already, and the name of a round"):
        load_recipe(write(tmp_path, taken, ONLINE))
    name = "d" * 39
    long = {**STAGES, name: STAGES["dpo"]}
    with pytest.raises(InputError, match="has more than 40 letters"):
        load_recipe(write(tmp_path, long, {"times": 2, "stages": ["evaluation", name]}))


def test_a_fault_of_every_round_is_said_once_where_it_is_written(tmp_path: Path) -> None:
    stages = STAGES | {"dpo": {**STAGES["dpo"], "loss": "exo_pair"}}
    path = write(tmp_path, stages, ONLINE)
    faults = placed(wiring_faults(load_recipe(path)), path)
    (fault,) = faults
    assert fault.field == "stages.dpo.label_smoothing"
    assert fault.file == str(path)
    assert fault.row is not None
