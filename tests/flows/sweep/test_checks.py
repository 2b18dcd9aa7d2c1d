"""What is wrong with a sweep is said before anything runs, all of it at once, each in a line."""

from pathlib import Path

import pytest

from alignment.errors import InputError
from alignment.workspace import Workspace
from tests.conftest import MakeRecipe
from tests.flows.conftest import call
from tests.flows.sweep.conftest import Check

NEEDED = "sft, responses, preferences, reward, dpo, evaluation"


@pytest.mark.parametrize(
    ("over", "lines"),
    [
        (["stages.dpo.betta=0.1,0.3"], ["--over:stages.dpo.betta: unknown"]),
        (["stages.dpoo.beta=0.1,0.3"], ["--over:stages.dpoo.beta: no stage dpoo; did you mean dpo?"]),
        (["stages.dpo.beta=0.1,high"], ["--over:stages.dpo.beta: "]),
        (
            ["description=one,two"],
            ["--over:description: it changes no stage that evaluation stands on; "
             f"name a setting that does, of {NEEDED}"],
        ),
        (
            ["stages.dpo.beta=0.1,0.3", "stages.evaluation.workers=1,2"],
            ["--over:stages.evaluation.workers: it changes no stage that evaluation stands on"],
        ),
        (
            ["stages.evaluation.limit=2,3"],
            ["--over:stages.evaluation.limit: it changes evaluation itself, by which variants are compared; "
             "set it for all of them with --set"],
        ),
        (
            ["data.held_out=0.3,0.5"],
            ["--over:data.held_out: it changes evaluation itself, by which variants are compared"],
        ),
        (
            ["stages.sft.lora={rank: 4, alpha: 8},{rank: 4, alpha: 8, dropout: 0.0}"],
            ['--over:stages.sft.lora: lora={"rank": 4, "alpha": 8} and lora={"rank": 4, "alpha": 8, "dropout": 0.0} '
             "are the same; remove one"],
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(
    check: Check, make_recipe: MakeRecipe, tmp_path: Path, over: list[str], lines: list[str]
) -> None:
    with pytest.raises(InputError) as raised:
        check(make_recipe(tmp_path / "recipe"), *over)
    found = [str(fault) for fault in raised.value.faults]
    assert len(found) == len(lines), found
    assert all(one.startswith(line) for one, line in zip(found, lines, strict=True)), found


def test_faults_of_all_variants_come_at_once(check: Check, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """Those that a variant has alone name it, those of all are said once."""
    recipe = make_recipe(tmp_path / "recipe", changes={"stages.evaluation.against": ["base", "sfft"]})
    with pytest.raises(InputError) as raised:
        check(recipe, "stages.dpo.preferences=preferences,preferencess")
    found = [str(fault) for fault in raised.value.faults]
    assert len(found) == 2, found
    assert any("sfft" in line and "with " not in line for line in found)
    assert any("with preferences=preferencess" in line for line in found)


@pytest.mark.parametrize(
    ("changes", "by", "line"),
    [
        ({}, "win_rate.base.judge", "--by: evaluation gives no win_rate.base.judge that all variants have in common; "),
        ({"stages.evaluation.raters": None, "stages.evaluation.reward": None}, None,
         "stages.evaluation: it gives no figure of each prompt that all variants have in common; "),
    ],
)  # fmt: skip
def test_what_cannot_be_compared(
    check: Check, make_recipe: MakeRecipe, tmp_path: Path, changes: dict[str, object], by: str | None, line: str
) -> None:
    with pytest.raises(InputError) as raised:
        check(make_recipe(tmp_path / "recipe", changes=changes), "stages.dpo.beta=0.1,0.3", by=by)
    [fault] = raised.value.faults
    assert line in str(fault)


def test_who_differs_is_no_common_opponent_and_no_common_judge(
    check: Check, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    """A sweep over SFT changes the opponent sft and the reward model, but neither base nor the raters."""
    recipe = make_recipe(tmp_path / "recipe")
    found = check(recipe, "stages.sft.learning_rate=1e-2,2e-2")
    assert found.varied == {"sft", "responses", "preferences", "reward", "dpo", "evaluation"}
    assert found.objective.name == "win_rate.base.rubric"
    with pytest.raises(InputError, match=r"no win_rate\.base\.reward that all"):
        check(recipe, "stages.sft.learning_rate=1e-2,2e-2", by="win_rate.base.reward")
    later = check(recipe, "stages.dpo.beta=0.1,0.3", by="win_rate.sft.reward")
    assert (later.objective.opponent, later.objective.judge) == ("sft", "reward")


def test_the_command_says_it_and_makes_no_run(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    ended = call("sweep", make_recipe(tmp_path / "recipe"), "--over", "stages.dpo.betta=1,2", "-w", tmp_path / "space")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("--over:stages.dpo.betta: unknown")
    assert len(ended.err.splitlines()) == 1
    assert not (tmp_path / "space" / "runs").exists()
    assert not (tmp_path / "space" / "sweeps").exists()


def test_a_recipe_without_an_evaluation(check: Check, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path / "recipe", stages=("sft", "responses"))
    with pytest.raises(InputError, match="no stage of kind evaluate asks held-out prompts"):
        check(recipe, "stages.sft.learning_rate=1e-2,2e-2")


def test_two_sweeps_at_once_are_refused(workspace: Workspace) -> None:
    from flows.sweep.side_by_side import one_at_a_time

    folder = workspace.folder("sweeps", "tiny-1")
    again = one_at_a_time(folder)
    with one_at_a_time(folder), pytest.raises(InputError, match="another process works on the sweep"), again:
        pass
