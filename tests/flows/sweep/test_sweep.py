"""A sweep of the tiny recipe, whole: two variants that train, and one that cannot."""

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from alignment.data.split import is_held_out
from alignment.registry.looks import looks
from alignment.workspace import Workspace
from tests.conftest import MakeRecipe, prompt_rows
from tests.flows.conftest import Ended, Rlhf

pytestmark = pytest.mark.timeout(900)
STAGES = ("sft", "responses", "preferences", "dpo", "evaluation")
CHANGES = {"stages.evaluation.reward": None, "stages.evaluation.against": ["base"]}
OVER = "stages.dpo.learning_rate=1e-3,5e-3,1e30"


@dataclass
class Swept:
    """A sweep that has ended, the same command once more, and what its page says to do next."""

    root: Path
    first: Ended
    again: Ended
    runs: tuple[int, int]  # after each
    fresh: Ended
    looked: tuple[int, ...]  # the numbers of the looks that the sweep wrote down, before the fresh one
    versions: list[Path]  # registered by the sweep

    @property
    def report(self) -> dict[str, Any]:
        [path] = self.root.glob("sweeps/*/sweep.json")
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return found

    def evaluations(self) -> Iterator[list[dict[str, Any]]]:
        for path in sorted(self.root.glob("artifacts/evaluation/v*/samples.jsonl")):
            yield [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def swept(rlhf: Rlhf, make_recipe: MakeRecipe, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    folder = tmp_path_factory.mktemp("sweep")
    recipe, root = make_recipe(folder / "recipe", stages=STAGES, changes=CHANGES), folder / "workspace"
    command = ("sweep", recipe, "--over", OVER, "-w", root)
    first = rlhf(*command)
    runs = len(list(root.glob("runs/*/report.json")))
    again = rlhf(*command)
    runs_again = len(list(root.glob("runs/*/report.json")))
    looked = tuple(look.number for look in looks(Workspace(root)))
    versions = list(root.glob("registry/policy/v*"))
    [path] = root.glob("sweeps/*/sweep.json")
    [step] = json.loads(path.read_text("utf-8"))["commands"]
    fresh = rlhf(*shlex.split(step["line"])[1:])
    return Swept(root, first, again, (runs, runs_again), fresh, looked, versions)


def test_a_variant_that_fails_is_named_and_stops_no_other(swept: Swept) -> None:
    assert swept.first.code == 1, swept.first.out + swept.first.err
    outcomes = {one["name"]: one["outcome"] for one in swept.report["variants"]}
    assert outcomes.pop("learning_rate=1e+30") == "failed"
    assert set(outcomes) == {"learning_rate=0.001", "learning_rate=0.005"}
    assert set(outcomes.values()) <= {"best", "alike", "worse"}
    [note] = [one["note"] for one in swept.report["variants"] if one["outcome"] == "failed"]
    assert note.startswith("seed 5: dpo: ")
    assert f"learning_rate=1e+30: failed, {note}" in swept.first.out


def test_shared_stages_are_made_once(swept: Swept) -> None:
    made = {stage: len(list(swept.root.glob(f"artifacts/{stage}/v*"))) for stage in STAGES[:4]}
    assert made == {"sft": 1, "responses": 1, "preferences": 1, "dpo": 2}
    assert "shared by all: sft, responses, preferences; made for each: dpo, evaluation" in swept.first.out
    assert (
        "3 variants with seed 5: 3 runs of 5 stages, 9 different ones of 15, 0 of them in the cache" in swept.first.out
    )


def test_the_same_command_makes_only_what_failed_again(swept: Swept) -> None:
    assert swept.runs == (3, 4)
    assert swept.again.code == 1
    assert "2 of 3 runs are made already" in swept.again.out


def test_all_variants_are_asked_the_first_half_of_the_held_out_prompts(swept: Swept) -> None:
    held_out = [row["prompt"] for row in prompt_rows() if is_held_out(row["prompt"].casefold(), 0.3)]
    first, second, fresh = (
        {row["prompt_id"]: row["prompt"][-1]["content"] for row in rows} for rows in swept.evaluations()
    )
    assert first == second
    assert len(first) == (len(held_out) + 1) // 2
    assert sorted(first) == sorted([*first, *fresh])[: len(first)]  # ids are digests
    assert set(first.values()) | set(fresh.values()) == set(held_out)


def test_means_are_those_of_the_evaluations(swept: Swept) -> None:
    counted = [
        sum(row["outcomes"]["base"]["rubric"] for row in rows) / len(rows) for rows in swept.evaluations()
    ][:2]  # fmt: skip
    found = [one["mean"]["value"] for one in swept.report["variants"] if one["mean"]]
    assert found == pytest.approx(counted)
    best = swept.report["comparison"]["best"]
    behind = [one["behind"]["value"] for one in swept.report["variants"] if one["mean"] and one["name"] != best]
    assert behind == pytest.approx([max(counted) - min(counted)])


def test_nothing_is_promoted_before_a_look_at_prompts_that_chose_nothing(swept: Swept) -> None:
    assert swept.versions == []
    assert "Nothing was promoted." in swept.first.out
    assert swept.looked == (1, 2)  # each evaluation is one, and once: the second command recorded none anew
    assert swept.report["look"] == {"looks": 2, "next_number": 3, "next_level": pytest.approx(0.025 / 3)}
    [line] = [step["line"] for step in swept.report["commands"]]
    assert "stages.evaluation.part=second half" in shlex.split(line)
    assert swept.fresh.code == 0, swept.fresh.out + swept.fresh.err
    assert "dpo          cached" in swept.fresh.out
    newest = max(swept.root.glob("runs/*/report.json"), key=lambda path: path.stat().st_mtime)
    report = json.loads(newest.read_text("utf-8"))
    assert report["gate"]["look"]["number"] == 1  # nobody has looked at these prompts
    assert report["registered"]["aliases"] == ["champion"]


def test_the_page_has_the_figures_and_asks_for_nothing_from_outside(swept: Swept) -> None:
    [page] = swept.root.glob("sweeps/*/sweep.html")
    text = page.read_text("utf-8")
    for one in swept.report["variants"]:
        assert one["name"] in text
    assert "Nothing was promoted" in text
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text
