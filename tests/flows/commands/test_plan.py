"""``rlhf plan``: its words, its JSON, and its refusals. Arithmetic alone: no weight is loaded."""

import json
from pathlib import Path
from typing import Any

import pytest

from alignment.errors import InputError
from flows.commands.plan import plan_command


@pytest.fixture
def plan(make_recipe: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Plans the tiny recipe and returns what was printed."""
    path = make_recipe(tmp_path / "recipe")

    def run(*overrides: str, on: tuple[str, ...] = ("cpu", "H100"), as_json: bool = False) -> str:
        plan_command(str(path), tmp_path / "space", list(overrides), on, measure=False, as_json=as_json)
        return capsys.readouterr().out

    return run


def test_the_plan_as_json(plan: Any) -> None:
    value = json.loads(plan(as_json=True))
    stages = {stage["name"]: stage for stage in value["stages"]}
    assert list(stages) == ["sft", "responses", "preferences", "reward", "dpo", "evaluation"]
    assert [machine["name"] for machine in value["machines"]] == ["cpu", "H100"]
    assert stages["preferences"]["parameters"] == stages["preferences"]["flops"] == 0
    for stage in value["stages"]:
        for on in stage["machines"]:
            parts = on["memory"]
            assert parts.pop("total") == sum(parts.values())
            assert on["fits"]
            assert on["remedies"] == []
    # What is written holds on any machine, where `auto` is each machine's own.
    assert {on["precision"] for on in stages["sft"]["machines"]} == {"float32"}


def test_set_changes_the_plan(plan: Any) -> None:
    before, after = (json.loads(plan(*o, as_json=True))["stages"][0] for o in ((), ("stages.sft.epochs=8",)))
    assert after["tokens_trained"] == 2 * before["tokens_trained"]  # the recipe says 4


def test_the_plan_in_words(plan: Any) -> None:
    said = plan("stages.sft.lora=null", "resources.device=cuda")  # the GPU need not be here
    assert "H100" in said
    assert "Hoffmann et al. 2022" in said
    assert "prices are assumptions" in said


def test_faults_are_those_of_the_check(plan: Any) -> None:
    with pytest.raises(InputError) as wrong:
        plan("data.prompts=nowhere.jsonl")
    assert "nowhere.jsonl" in str(wrong.value)
    with pytest.raises(InputError, match="no machine 'abacus'; the machines are: cpu, L4"):
        plan(on=("abacus",))
