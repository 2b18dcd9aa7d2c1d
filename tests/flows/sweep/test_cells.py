"""What each run of a sweep is: which stages it shares with the others, by their keys."""

from pathlib import Path

from alignment.recipe.graph import of_type
from alignment.recipe.stages.evaluate import EvaluateStage
from alignment.workspace import Workspace
from flows.sweep.cells import compared_half, fresh_half, make_cell
from flows.sweep.keys import planned_keys, varied_stages
from flows.sweep.results import stage_counts
from tests.conftest import MakeRecipe
from tests.flows.sweep.conftest import Check


def test_seeds_retrain_what_variants_do_not_share_and_nothing_else(
    check: Check, make_recipe: MakeRecipe, workspace: Workspace, tmp_path: Path
) -> None:
    checked = check(make_recipe(tmp_path / "recipe"), "stages.dpo.beta=0.1,0.3")
    cells = {
        (place, offset): make_cell(checked, place, offset, tmp_path, workspace, screen=False)
        for place in (0, 1) for offset in (0, 1, 2)
    }  # fmt: skip
    keys = {where: planned_keys(cell.resolved, workspace) for where, cell in cells.items()}
    assert varied_stages(keys.values()) == {"dpo", "evaluation"}
    assert len({table["dpo"] for table in keys.values()}) == 6
    assert [cells[0, offset].seed for offset in (0, 1, 2)] == [5, 6, 7]
    assert cells[0, 0].resolved.recipe.stages["dpo"].seed is None  # the very run that `--set` would make
    assert cells[0, 2].resolved.recipe.stages["dpo"].seed == 7
    # The evaluation asks every model with the same draws: it has no seed of its own.
    assert {cell.resolved.recipe.stages["evaluation"].seed for cell in cells.values()} == {None}
    counts = stage_counts(checked, list(cells.values()), workspace)
    # 6 runs of 6 stages; sft, responses, preferences and reward once, dpo and evaluation six times.
    assert (counts.total, counts.distinct, counts.cached) == (36, 4 + 12, 0)
    assert counts.shared == ("sft", "responses", "preferences", "reward")


def test_a_repetition_from_sft_on_repeats_all_that_follows(
    check: Check, make_recipe: MakeRecipe, workspace: Workspace, tmp_path: Path
) -> None:
    checked = check(make_recipe(tmp_path / "recipe"), "stages.sft.learning_rate=1e-2,2e-2")
    cell = make_cell(checked, 0, 1, tmp_path, workspace, screen=False)
    seeds = {name: stage.seed for name, stage in cell.resolved.recipe.stages.items()}
    assert seeds == {"sft": 6, "responses": 6, "preferences": 6, "reward": 6, "dpo": 6, "evaluation": None}


def test_no_run_promotes_and_each_asks_the_half_that_is_compared(
    check: Check, make_recipe: MakeRecipe, workspace: Workspace, tmp_path: Path
) -> None:
    checked = check(make_recipe(tmp_path / "recipe"), "stages.dpo.beta=0.1,0.3")
    assert checked.recipe.gate is not None
    cell = make_cell(checked, 1, 0, tmp_path, workspace, screen=False)
    recipe = cell.resolved.recipe
    assert recipe.gate is None
    assert dict(of_type(recipe.stages, EvaluateStage))["evaluation"].part == "first half"
    assert (compared_half("all"), fresh_half("all")) == ("first half", "second half")
    assert (compared_half("second half"), fresh_half("second half")) == ("first half", "second half")
    assert (compared_half("first half"), fresh_half("first half")) == ("second half", "first half")


def test_the_look_between_seeds_asks_the_training_split_alone(
    check: Check, make_recipe: MakeRecipe, workspace: Workspace, tmp_path: Path
) -> None:
    checked = check(make_recipe(tmp_path / "recipe"), "stages.dpo.beta=0.1,0.3")
    cell = make_cell(checked, 0, 1, tmp_path, workspace, screen=True)
    stages = cell.resolved.recipe.stages
    # The reward model judges nothing here, for the raters' verdict is what is compared: it is not trained either.
    assert list(stages) == ["sft", "responses", "preferences", "dpo", "screening"]
    [(_name, look)] = of_type(stages, EvaluateStage)
    assert (look.split, look.against, look.part, look.reward) == ("train", ("base",), "all", None)
    assert not any(stage.asks_held_out() for stage in stages.values())
    # What it trains is what the whole run trains, with the same keys: nothing is made twice.
    whole = planned_keys(make_cell(checked, 0, 1, tmp_path, workspace, screen=False).resolved, workspace)
    keys = planned_keys(cell.resolved, workspace)
    assert {name: keys[name] for name in ("sft", "dpo")} == {name: whole[name] for name in ("sft", "dpo")}


def test_methods_are_variants_too(check: Check, make_recipe: MakeRecipe, workspace: Workspace, tmp_path: Path) -> None:
    """Which stage is the candidate may differ: each run has what its own stands on."""
    recipe = make_recipe(tmp_path / "recipe", changes={"stages.evaluation.against": ["base"]})
    checked = check(recipe, "stages.evaluation.model=dpo,sft")
    [dpo, sft] = [make_cell(checked, place, 0, tmp_path, workspace, screen=True).resolved.recipe for place in (0, 1)]
    assert list(dpo.stages) == ["sft", "responses", "preferences", "dpo", "screening"]
    assert list(sft.stages) == ["sft", "screening"]
    assert [dict(of_type(one.stages, EvaluateStage))["screening"].model for one in (dpo, sft)] == ["dpo", "sft"]


def test_what_the_comparison_does_not_stand_on_is_left_out(
    check: Check, make_recipe: MakeRecipe, workspace: Workspace, tmp_path: Path
) -> None:
    idle = {"kind": "sft", "model": "base", "learning_rate": 1e-3}
    checked = check(make_recipe(tmp_path / "recipe", changes={"stages.idle": idle}), "stages.dpo.beta=0.1,0.3")
    assert "idle" not in make_cell(checked, 0, 0, tmp_path, workspace, screen=False).resolved.recipe.stages
