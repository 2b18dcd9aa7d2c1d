"""Rounds on a tiny model: checked, planned, run, cached round by round, and told apart in report and lineage."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment.workspace import Workspace

Rlhf = Callable[..., Any]
REPEATED = ("responses", "preferences", "dpo")


def named(times: int) -> list[str]:
    return [f"{name}_{turn}" for turn in range(1, times + 1) for name in REPEATED]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_rounds_are_cached_one_by_one_and_go_on_where_they_stopped(
    rlhf: Rlhf, make_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    stages = ("sft", *REPEATED, "evaluation")
    changes = {
        "stages.responses.limit": 3, "stages.dpo.cut_chosen": "keep", "stages.evaluation.against": ["sft", "dpo_1"],
        "stages.evaluation.reward": None, "rounds": {"times": 2, "stages": list(REPEATED)},
    }  # fmt: skip
    recipe, space = make_recipe(tmp_path / "recipe", stages=stages, changes=changes), tmp_path / "workspace"

    def report(number: int) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((space / "runs" / f"tiny-{number}" / "report.json").read_text())
        return found

    def made(number: int) -> dict[str, bool]:
        return {stage["name"]: not stage["cached"] for stage in report(number)["stages"] if stage["name"] != "register"}

    assert "8 stages, nothing wrong" in rlhf("check", recipe, "-w", space).out
    planned = json.loads(rlhf("plan", recipe, "-w", space, "--json").out)
    assert [stage["name"] for stage in planned["stages"]] == ["sft", *named(2), "evaluation"]

    first = rlhf("run", recipe, "-w", space)
    assert (first.code, first.err) == (0, "")
    assert list(made(1)) == ["base", "sft", *named(2), "evaluation"]
    inputs = {s["name"]: {one["name"] for one in s["inputs"]} for s in report(1)["stages"]}
    assert inputs["responses_2"] == {"base", "dpo_1"}
    assert inputs["dpo_2"] == {"base", "dpo_1", "preferences_2"}
    assert inputs["evaluation"] >= {"sft", "dpo_1", "dpo_2"}

    artifacts = {one.name: one for one in Workspace(space).artifacts()}

    def prompts(name: str) -> set[str]:
        lines = (Path(artifacts[name].path) / "prompts.jsonl").read_text().splitlines()
        return {json.loads(line)["id"] for line in lines}

    assert len(prompts("responses_1")) == 3
    assert prompts("responses_1") & prompts("responses_2") == set()  # each round asks others
    shown = json.loads(rlhf("models", "show", "policy@champion", "-w", space, "--json").out)
    assert {node["name"] for node in shown["record"]["lineage"]["nodes"]} >= {"dpo_1", "dpo_2"}

    # One round more: those before come from the cache. The last one made anew has the same bits.
    assert rlhf("run", recipe, "-w", space, "--set", "rounds.times=3").code == 0
    assert [name for name, anew in made(2).items() if anew] == [*named(3)[6:], "evaluation"]
    before = {one.name: one.digest for one in Workspace(space).artifacts()}
    assert rlhf("run", recipe, "-w", space, "--set", "rounds.times=3", "--refresh", "dpo_3").code == 0
    after = {one.name: one.digest for one in Workspace(space).artifacts()}
    assert after["dpo_3"] == before["dpo_3"]
    assert after["dpo_3"] != after["dpo_2"]
    assert not any(anew for name, anew in made(3).items() if name in named(2))
