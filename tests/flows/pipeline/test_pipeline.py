"""The whole run on a tiny model: real training, a real Prefect server, a real MLflow store."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment.durable_files import folder_digest
from alignment.records import Artifact
from alignment.workspace import Workspace

Rlhf = Callable[..., Any]
MakeRecipe = Callable[..., Path]
STAGES = ("sft", "responses", "preferences", "reward", "dpo", "evaluation")


class Space:
    """A recipe and a workspace that it runs in."""

    def __init__(self, rlhf: Rlhf, recipe: Path, root: Path) -> None:
        self.rlhf, self.recipe, self.root = rlhf, recipe, root

    def run(self, *options: str) -> Any:
        return self.rlhf("run", self.recipe, "-w", self.root, *options)

    def report(self, number: int) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.root / "runs" / f"tiny-{number}" / "report.json").read_text())
        return found

    def cached(self, number: int) -> dict[str, bool]:
        """Whether each stage of a run came from the cache."""
        return {stage["name"]: stage["cached"] for stage in self.report(number)["stages"]}

    def newest(self) -> dict[str, Artifact]:
        """The newest artifact of each stage."""
        return {artifact.name: artifact for artifact in Workspace(self.root).artifacts()}

    def digests(self) -> dict[str, str]:
        return {name: artifact.digest for name, artifact in self.newest().items()}

    def copy(self, to: Path) -> "Space":
        """The same workspace in another place, as after ``mv``."""
        shutil.copytree(self.root, to / "workspace")
        return Space(self.rlhf, self.recipe, to / "workspace")


@pytest.fixture(scope="module")
def done(rlhf: Rlhf, make_recipe: MakeRecipe, tmp_path_factory: pytest.TempPathFactory) -> Space:
    """A workspace with one whole run in it. Tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("done")
    space = Space(rlhf, make_recipe(folder / "recipe"), folder / "workspace")
    ended = space.run()
    assert (ended.code, ended.err) == (0, "")
    return space


def test_every_stage_runs_and_the_report_says_so(done: Space) -> None:
    report = done.report(1)
    assert {"run", "recipe_digest", "commit", "started", "finished", "seconds", "stages", "gate", "cost"} <= set(report)
    assert report["run"] == "tiny-1"
    assert report["started"] < report["finished"]
    stages = {stage["name"]: stage for stage in report["stages"]}
    assert list(stages) == ["base", *STAGES, "register"]
    kinds = ["base", "sft", "sample", "preferences", "reward", "dpo", "evaluate", "register"]
    assert [stage["kind"] for stage in stages.values()] == kinds
    assert {stage["status"] for stage in stages.values()} == {"completed"}
    for name in STAGES:
        stage = stages[name]
        assert not stage["cached"]
        assert 0 < stage["work_seconds"] <= stage["seconds"]
        [output] = stage["outputs"]
        assert output["version"] == 1
        assert output["digest"] == folder_digest(done.root / "artifacts" / name / "v1")
        assert stage["metrics"]
    assert sum(stage["seconds"] for stage in stages.values()) <= report["seconds"]
    assert {i["name"] for i in stages["dpo"]["inputs"]} == {"base", "sft", "preferences"}
    cost = report["cost"]
    assert cost["cpu_seconds"] > 0
    assert cost["gpu_seconds"] == 0
    assert cost["tokens_trained"] > 100
    assert cost["tokens_sampled"] > 100
    page = (done.root / "runs" / "tiny-1" / "report.html").read_text()
    assert "<script src=" not in page
    assert 'href="http' not in page


def test_the_gate_promoted(done: Space) -> None:
    gate = done.report(1)["gate"]
    assert gate["passed"]
    [check] = gate["checks"]
    assert (check["name"], check["threshold"], check["passed"]) == ("kl", 1000.0, True)
    look = gate["look"]
    assert (look["number"], look["level"], look["spends"]) == (1, 0.025, False)
    shown = json.loads(done.rlhf("models", "show", "policy@champion", "-w", done.root, "--json").out)
    assert shown["intact"]
    assert shown["version"]["aliases"] == ["champion"]
    nodes = {node["name"]: node for node in shown["record"]["lineage"]["nodes"]}
    assert set(nodes) == {"base", *STAGES}
    for name, artifact in done.newest().items():
        assert (nodes[name]["version"], nodes[name]["digest"]) == (artifact.version, artifact.digest)
        assert nodes[name]["inputs"].keys() == artifact.inputs.keys()
    assert shown["record"]["chat_template"]
    listed = json.loads(done.rlhf("models", "list", "-w", done.root, "--json").out)
    assert [(version["name"], version["version"]) for version in listed] == [("policy", 1)]


def test_the_promoted_folder_needs_nothing_of_this_project(done: Space) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = done.root / "registry" / "policy" / "v1"
    model = AutoModelForCausalLM.from_pretrained(str(folder))
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    chat = [{"role": "user", "content": "What colour is the cat?"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    with torch.inference_mode():
        answer = model.generate(**ids, max_new_tokens=10, do_sample=False)
    assert answer.shape[1] > ids["input_ids"].shape[1]
    card = (folder / "README.md").read_text()
    assert "simulated" in card
    said = done.rlhf("generate", "policy@champion", "-p", "What colour is the cat?", "-w", done.root, "--json")
    row = json.loads(said.out)
    new = tokenizer.decode(answer[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert row["response"].startswith(new)


def test_every_pairwise_loss_starts_at_log_2(done: Space) -> None:
    """DPO's reference is what it starts from, and a reward model's head starts at zero."""
    for name in ("dpo", "reward"):
        curves = json.loads((done.root / "artifacts" / name / "v1" / "curves.json").read_text())
        assert curves["loss"][0] == [1, pytest.approx(0.693147, abs=1e-4)]


def test_the_second_run_is_all_cache(done: Space, tmp_path: Path) -> None:
    space = done.copy(tmp_path)
    before = sorted(str(path) for path in (space.root / "artifacts").rglob("*"))
    ended = space.run()
    assert ended.code == 0
    assert set(space.cached(2).values()) == {True}
    assert sorted(str(path) for path in (space.root / "artifacts").rglob("*")) == before
    report, first = space.report(2), space.report(1)
    assert report["gate"] == first["gate"]
    assert report["cost"]["tokens_trained"] == 0
    assert report["cost_with_cached"]["tokens_trained"] == first["cost"]["tokens_trained"]
    assert sum(stage["work_seconds"] for stage in report["stages"]) == 0
    assert str(space.root) in ended.out  # and not the place it was copied from
    assert str(done.root) not in (space.root / "runs" / "tiny-2" / "report.json").read_text()


def test_a_changed_learning_rate_runs_dpo_and_what_follows(done: Space, tmp_path: Path) -> None:
    space = done.copy(tmp_path)
    assert space.run("--set", "stages.dpo.learning_rate=2e-3").code == 0
    cached = space.cached(2)
    assert [name for name, was in cached.items() if not was] == ["dpo", "evaluation", "register"]
    assert space.newest()["dpo"].version == 2
    assert space.digests()["dpo"] != done.digests()["dpo"]
    assert space.report(2)["registered"]["version"] == 2
    assert space.run().code == 0  # the first settings' artifacts are still there
    assert set(space.cached(3).values()) == {True}
    assert space.report(3)["registered"]["version"] == 1


def test_a_removed_artifact_is_made_again_and_is_the_same(done: Space, tmp_path: Path) -> None:
    space = done.copy(tmp_path)
    shutil.rmtree(space.root / "artifacts" / "sft")
    assert space.run().code == 0
    assert [name for name, was in space.cached(2).items() if not was] == ["sft"]
    assert space.digests() == done.digests()


def test_a_removed_registry_is_made_again(done: Space, tmp_path: Path) -> None:
    """The run's words must not come from the cache when the version is gone."""
    space = done.copy(tmp_path)
    assert space.run().code == 0
    assert set(space.cached(2).values()) == {True}
    shutil.rmtree(space.root / "registry")
    (space.root / "mlflow.db").unlink()
    assert space.run().code == 0
    assert [name for name, was in space.cached(3).items() if not was] == ["register"]
    shown = json.loads(space.rlhf("models", "show", "policy@champion", "-w", space.root, "--json").out)
    assert shown["intact"]


def test_a_refusal_is_exit_1_and_says_by_how_much(done: Space, tmp_path: Path) -> None:
    space = done.copy(tmp_path)
    ended = space.run("--set", "gate.conditions.0={metric: win_rate.base.rubric.low, above: 0.999}")
    assert ended.code == 1
    low = space.newest()["evaluation"].metrics["win_rate.base.rubric.low"]
    gate = space.report(2)["gate"]
    assert gate["look"]["number"] == 1  # the same evaluation, asked for more
    assert "look 1 at these" in ended.out
    [check] = gate["checks"]
    assert not check["passed"]
    assert check["by"] == pytest.approx(low - 0.999)
    assert f"must be above 0.999: failed by {0.999 - low:.4g}" in ended.out
    assert "Traceback" not in ended.out + ended.err
    assert f"{0.999 - low:.2g}" in (space.root / "runs" / "tiny-2" / "report.html").read_text()
    listed = json.loads(space.rlhf("models", "list", "-w", space.root, "--json").out)
    aliases = {version["version"]: version["aliases"] for version in listed}
    assert aliases == {1: ["champion"], 2: ["candidate"]}
    assert space.run("--set", "gate.conditions.0={metric: win_rate.base.rubric.low, above: 0.999}").code == 1  # cached
    assert set(space.cached(3).values()) == {True}


def test_only_and_from(done: Space, tmp_path: Path) -> None:
    space = done.copy(tmp_path)
    changed = ("--set", "stages.dpo.beta=0.2", "--set", "stages.reward.epochs=2")
    assert space.run("--only", "dpo", *changed).code == 0
    assert space.cached(2) == {"base": True, "dpo": False}
    assert space.report(2)["gate"] is None
    assert space.newest()["reward"].version == 1  # its settings changed too, and it was not asked for
    assert space.run("--from", "reward", *changed).code == 0
    assert space.cached(3) == {"base": True, "reward": False, "dpo": True, "evaluation": False, "register": False}


def test_only_without_what_it_needs(make_recipe: MakeRecipe, rlhf: Rlhf, tmp_path: Path) -> None:
    space = Space(rlhf, make_recipe(tmp_path / "recipe"), tmp_path / "workspace")
    ended = space.run("--only", "dpo")
    assert ended.code == 2
    assert ended.err.strip() == (
        "stages.dpo: stage dpo needs preferences, sft, never run with these settings; "
        "run the recipe without --only and --from first"
    )
    assert list(Workspace(space.root).artifacts()) == []
    for option in ("--only", "--from"):
        ended = space.run(option, "dop")
        assert ended.code == 2
        assert ended.err.startswith(f"{option}: no stage 'dop' in the recipe")
    assert [path.name for path in (space.root / "runs").iterdir()] == ["tiny-1"]  # a mistyped stage leaves no run


def test_the_resolved_recipe_repeats_the_run(done: Space, tmp_path: Path) -> None:
    space = done.copy(tmp_path)
    ended = space.rlhf("run", space.root / "runs" / "tiny-1" / "recipe.yaml", "-w", space.root)
    assert ended.code == 0
    assert set(space.cached(2).values()) == {True}


def test_a_stage_that_fails(make_recipe: MakeRecipe, rlhf: Rlhf, tmp_path: Path) -> None:
    """Exit 1, one line that says what to do, the report with the stage marked; what was done before stays."""
    changes = {"stages.dpo.max_length": 8}
    space = Space(rlhf, make_recipe(tmp_path / "recipe", changes=changes), tmp_path / "workspace")
    ended = space.run()
    assert ended.code == 1
    problem = "every prompt alone fills max_length=8 tokens; raise it"
    assert len([line for line in ended.out.splitlines() if line.startswith("tiny-1") and problem in line]) == 1
    assert "Traceback" not in ended.out + ended.err
    report = space.report(1)
    assert [stage["status"] for stage in report["stages"]] == ["completed"] * 5 + ["failed"]
    assert problem in report["stages"][-1]["error"]
    assert report["gate"] is None
    assert "failed" in (space.root / "runs" / "tiny-1" / "report.html").read_text()
    assert space.run("--set", "stages.dpo.max_length=64").code == 0
    assert [name for name, was in space.cached(2).items() if not was] == ["dpo", "evaluation", "register"]


def test_a_loss_that_is_not_a_number(make_recipe: MakeRecipe, rlhf: Rlhf, tmp_path: Path) -> None:
    changes = {"stages.sft.learning_rate": 1e30, "stages.sft.warmup": 0, "stages.sft.max_grad_norm": 1e30}
    space = Space(rlhf, make_recipe(tmp_path / "recipe", stages=("sft",), changes=changes), tmp_path / "workspace")
    ended = space.run()
    assert ended.code == 1
    assert "lower the learning rate (1e+30)" in ended.out
    assert "Traceback" not in ended.out + ended.err
    report = space.report(1)
    assert [stage["status"] for stage in report["stages"]] == ["completed", "failed"]
    assert list(Workspace(space.root).artifacts()) == []


def test_bad_input_is_exit_2_with_a_line_for_each_fault(make_recipe: MakeRecipe, rlhf: Rlhf, tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path / "recipe", changes={"stages.dpo.model": "stf"})
    prompts = recipe.parent / "prompts.jsonl"
    rows = prompts.read_text().splitlines()
    rows[2] = '{"prompt": null}'
    rows[7] = "{"
    prompts.write_text("\n".join(rows))
    (recipe.parent / "demonstrations.jsonl").unlink()
    space = Space(rlhf, recipe, tmp_path / "workspace")
    ended = space.run()
    assert ended.code == 2
    lines = ended.err.strip().splitlines()
    assert len(lines) == 4
    for part in ("prompts.jsonl:3", "prompts.jsonl:8", "stf", "demonstr"):
        assert any(part in line for line in lines), part
    assert f"{prompts}:3:prompt" in ended.err
    assert "did you mean sft?" in ended.err
    assert ended.out == ""
    assert not (space.root / "artifacts").exists()
    assert list((space.root / "runs").iterdir()) == [] if (space.root / "runs").exists() else True


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_the_same_bits_in_a_fresh_workspace(
    done: Space, make_recipe: MakeRecipe, rlhf: Rlhf, tmp_path: Path, dtype: str
) -> None:
    """Every artifact of every stage, though the process has drawn random numbers in between."""
    spaces = [done] if dtype == "float32" else []
    recipe = make_recipe(tmp_path / "recipe", changes={"model.dtype": dtype})
    while len(spaces) < 2:
        spaces.append(Space(rlhf, recipe, tmp_path / f"workspace-{len(spaces)}"))
        assert spaces[-1].run().code == 0
    assert spaces[0].digests() == spaces[1].digests()
    assert set(spaces[0].digests()) == set(STAGES)
