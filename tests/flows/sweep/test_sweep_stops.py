"""A sweep in which one variant learns and the other does not: the loser is stopped on training prompts alone."""

import json
import shlex
from pathlib import Path

import pytest

from tests.conftest import MakeRecipe, prompt_rows
from tests.flows.conftest import Rlhf

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]
CHANGES = {
    "stages.evaluation.model": "sft", "stages.evaluation.against": ["base"], "stages.evaluation.reward": None,
}  # fmt: skip


def test_a_clear_loser_is_stopped_after_two_seeds(rlhf: Rlhf, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path / "recipe", stages=("sft", "evaluation"), changes=CHANGES)
    root = tmp_path / "workspace"
    ended = rlhf("sweep", recipe, "--over", "stages.sft.learning_rate=1e-2,1e-9", "--seeds", "3", "-w", root)
    assert ended.code == 0, ended.out + ended.err
    [path] = root.glob("sweeps/*/sweep.json")
    report = json.loads(path.read_text("utf-8"))
    assert {one["name"]: one["outcome"] for one in report["variants"]} == {
        "learning_rate=0.01": "best", "learning_rate=1e-09": "stopped",
    }  # fmt: skip
    [stop] = report["stops"]
    assert (stop["variant"], stop["by"], stop["seeds"]) == ("learning_rate=1e-09", "learning_rate=0.01", 2)
    # Each was trained with two seeds; the loser's third never is, and nobody is asked held-out prompts.
    assert len(list(root.glob("artifacts/sft/v*"))) == 4
    looks = sorted(root.glob("artifacts/screening/v*/samples.jsonl"))
    assert len(looks) == 4
    assert not list(root.glob("artifacts/evaluation/v*"))
    assert not (root / "mlflow.db").exists()  # no look was written down
    # The lead, counted again: the learner and the other, with one seed and then with the next.
    rows = [[json.loads(line) for line in path.read_text("utf-8").splitlines()] for path in looks]
    means = [sum(row["outcomes"]["base"]["rubric"] for row in own) / len(own) for own in rows]
    assert stop["ahead"]["value"] == pytest.approx((means[0] - means[1] + means[2] - means[3]) / 2)
    # What was asked are prompts that may be trained on, and none else.
    asked = {row["prompt"][-1]["content"] for own in rows for row in own}
    assert asked < {row["prompt"] for row in prompt_rows()}
    assert len(asked) == stop["ahead"]["n"] == report["screened"]
    [step] = report["commands"]
    assert "stages.sft.learning_rate=0.01" in shlex.split(step["line"])
    assert not any("part=" in word for word in shlex.split(step["line"]))
