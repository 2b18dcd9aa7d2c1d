"""The state in which a deployment's run ends, as the dashboard and automations see it: what the gate said."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


def test_promoted_and_refused(make_recipe: Callable[..., Path], make_room: Callable[..., Any], tmp_path: Path) -> None:
    """Runs of one deployment on a real Prefect server, with a gate that everything passes and one that nothing does.

    Promoted is of Prefect's type COMPLETED; Refused is FAILED, so that whoever waits for a success hears of none.
    """
    changes = {
        "stages.evaluation.model": "sft",
        "stages.evaluation.against": ["base"],
        "stages.evaluation.reward": None,
    }
    recipe = make_recipe(tmp_path / "recipe", stages=("sft", "evaluation"), changes=changes)
    room = make_room(recipe, tmp_path / "workspace")
    room.start("deploy", recipe)
    [deployment] = room.until(lambda: room.post("/deployments/filter", {}) or None, 600)
    place = f"/deployments/{deployment['id']}/create_flow_run"

    def run(*overrides: str) -> dict[str, Any]:
        body = {
            "state": {"type": "SCHEDULED"}, "parameters": {**deployment["parameters"], "overrides": list(overrides)},
        }  # fmt: skip
        begun = room.until(lambda: room.post(place, body), 60)

        def ended() -> dict[str, Any] | None:
            [now] = room.post("/flow_runs/filter", {"flow_runs": {"id": {"any_": [begun["id"]]}}})
            return now if now["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

        found: dict[str, Any] = room.until(ended, 600)
        return found

    promoted = run()
    assert (promoted["state_type"], promoted["state_name"]) == ("COMPLETED", "Promoted")
    assert promoted["state"]["message"].startswith("policy v1 is the champion")
    refused = run("gate.conditions=[{metric: kl, below: -1}]")
    assert (refused["state_type"], refused["state_name"]) == ("FAILED", "Refused")
    assert "policy v2 was refused: kl = " in refused["state"]["message"]
    again = run()  # from the cache: what was decided stands
    assert (again["state_type"], again["state_name"]) == ("COMPLETED", "Promoted")
    inner = {
        one["name"]: one["state_name"] for one in room.post("/flow_runs/filter", {}) if one["name"].startswith("tiny-")
    }
    assert sorted(inner.values()) == ["Promoted", "Promoted", "Refused"]
