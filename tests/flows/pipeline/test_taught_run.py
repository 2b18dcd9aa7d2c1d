"""A whole run with teachers: a folder, a version that an earlier run promoted, and a server that answers alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment.workspace import Workspace
from tests.alignment.judges.fake_server import Answer, FakeServer

Rlhf = Callable[..., Any]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_teachers_of_every_kind_stand_in_the_lineage(
    rlhf: Rlhf, make_recipe: Callable[..., Path], make_model: Callable[..., Path], tmp_path: Path
) -> None:
    """The student that learned from a server's answers is promoted; the version before it teaches the next one."""
    server = FakeServer()
    server.behave = lambda body, _number: Answer(f"It is {('red', 'blue')[body['seed'] % 2]}.")
    recipe, space = make_recipe(tmp_path / "recipe", stages=("sft", "evaluation")), tmp_path / "workspace"
    values = json.loads(recipe.read_text())
    evaluation = values["stages"]["evaluation"] | {"model": "student", "against": ["base"], "reward": None}
    full = {"lora": None, "epochs": 1, "batch_size": 4, "max_length": 64, "learning_rate": 1e-3}
    values["stages"] = {
        "big": {"kind": "outside_model", "folder": str(make_model(tmp_path / "big", seed=3))},
        "answers": {"kind": "sample", "endpoint": {"url": server.url, "model": "big"}, "per_prompt": 2, "limit": 6},
        "best": {"kind": "rejection_sampling", "responses": "answers", "rewards": [
            {"kind": "length_penalty", "unit": "characters", "free": 4, "full": 40}]},
        "imitated": {"kind": "sft", "demonstrations": "best", **full},
        "student": {"kind": "distil", "model": "imitated", "teacher": "big", **full},
        "evaluation": evaluation,
    }  # fmt: skip
    values["gate"] = {"evaluation": "evaluation", "conditions": [{"metric": "kl", "below": 1000}]}
    recipe.write_text(json.dumps(values))
    try:
        assert rlhf("check", recipe, "-w", space).code == 0
        assert rlhf("run", recipe, "-w", space).code == 0
        asked = len(server.requests)
        nodes = {node["name"]: node for node in lineage(rlhf, space, "policy/1")}
        assert nodes["answers"]["origins"] == [f"server {server.url}, model big"]
        [origin] = nodes["big"]["origins"]
        assert origin.startswith(f"folder {tmp_path / 'big'}, digest ")
        values["stages"] = {
            "before": {"kind": "outside_model", "version": "policy@champion"},
            "student": {"kind": "distil", "teacher": "before", **full},
            "evaluation": evaluation,
        }
        recipe.write_text(json.dumps(values))
        assert rlhf("run", recipe, "-w", space).code == 0
        assert len(server.requests) == asked
        [origin] = {node["name"]: node for node in lineage(rlhf, space, "policy/2")}["before"]["origins"]
        assert origin.startswith("version policy/1, digest ")
        card = (space / "registry" / "policy" / "v2" / "README.md").read_text()
        assert "version policy/1, digest" in card
        assert {one.name for one in Workspace(space).artifacts()} >= {"big", "before", "student"}
    finally:
        server.stop()


def lineage(rlhf: Rlhf, space: Path, version: str) -> list[dict[str, Any]]:
    shown = json.loads(rlhf("models", "show", version, "-w", space, "--json").out)
    nodes: list[dict[str, Any]] = shown["record"]["lineage"]["nodes"]
    return nodes
