"""``rlhf plan``: its words, its JSON, and its refusals. Arithmetic alone: no weight is loaded."""

import json
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binom

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
    said = plan("stages.sft.lora=null", "stages.dpo.lora=null", "resources.device=cuda")  # the GPU need not be here
    assert "H100" in said
    assert "Hoffmann et al. 2022" in said
    assert "prices are assumptions" in said


GATE = "gate={evaluation: evaluation, conditions: [{metric: win_rate.base.rubric.low, above: 0.5}]}"


def test_the_plan_says_what_the_gate_can_see(plan: Any) -> None:
    """At 2.5 % one-sided and 80 % power the textbook's formula has 783, 194 and 85 prompts; the binomial a few more."""
    value = json.loads(plan(GATE, as_json=True))
    by_hand, deployed = value["gate"]
    assert (by_hand["by"], by_hand["look"], by_hand["level"]) == ("by hand", 1, 0.025)
    assert deployed["level"] == 0.025
    assert 0 < by_hand["prompts"] < 30
    needs = {sight["rate"]: sight["prompts_needed"] for sight in by_hand["sights"]}
    for rate, n in needs.items():
        least = next(k for k in range(n + 2) if binom.sf(k - 1, n, 0.5) <= 0.025)
        assert binom.sf(least - 1, n, rate) >= 0.8
    assert needs == {0.55: pytest.approx(785, abs=15), 0.6: pytest.approx(194, abs=6), 0.65: pytest.approx(85, abs=6)}
    said = plan(GATE)
    assert "look 1 at them is held to 2.5 % by hand and 2.5 % deployed" in said
    assert "deployed: shows" in said
    assert len(json.loads(plan(GATE, "gate.looks=always", as_json=True))["gate"]) == 1
    assert json.loads(plan(GATE, "gate.conditions=[{metric: kl, below: 9}]", as_json=True))["gate"] == []


def test_faults_are_those_of_the_check(plan: Any) -> None:
    with pytest.raises(InputError) as wrong:
        plan("data.prompts=nowhere.jsonl")
    assert "nowhere.jsonl" in str(wrong.value)
    with pytest.raises(InputError, match="no machine 'abacus'; the machines are: cpu, L4"):
        plan(on=("abacus",))
