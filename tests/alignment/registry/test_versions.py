"""The registry against a real MLflow store on SQLite."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from alignment.durable_files import folder_digest
from alignment.errors import InputError, StageError
from alignment.evaluation.gate import GateLook, GateVerdict
from alignment.recipe.recipe import Recipe
from alignment.records import Artifact
from alignment.registry import Provenance, RegisteredVersion, find, list_versions, promote, register, rollback, show
from alignment.registry.champion import champion_artifact
from alignment.registry.store import RegistryStore
from alignment.workspace import Workspace

Run = dict[str, Artifact]
Register = Callable[..., RegisteredVersion]


@pytest.fixture
def add(
    workspace: Workspace,
    recipe: Recipe,
    provenance: Provenance,
    make_run: Callable[..., Run],
    judge: Callable[[Run], GateVerdict],
) -> Register:
    """Makes a run and registers its policy."""

    def add(seed: int = 0, win: float = 0.7) -> RegisteredVersion:
        run = make_run(seed, win)
        return register(workspace, recipe, run, "dpo", judge(run), provenance)

    return add


def test_a_passed_version_becomes_champion_with_its_files_and_lineage(add: Register, workspace: Workspace) -> None:
    version = add()
    assert (version.name, version.version, version.aliases, version.passed) == ("policy", 1, ("champion",), True)
    folder = Path(version.folder)
    assert folder == workspace.root.resolve() / "registry/policy/v1"
    assert {"adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "README.md", "lineage.json"} <= {
        path.name for path in folder.iterdir()
    }
    assert not (folder / "artifact.json").exists()
    details = show(workspace, "policy@champion")
    assert details.intact
    assert details.problems == {}
    assert details.record is not None
    nodes = details.record.lineage.nodes
    assert nodes[0].id == "base@1"
    assert {node.name for node in nodes} == {"base", "sft", "answers", "votes", "reward", "dpo", "check"}
    assert ("sft@1", "dpo@1") in details.record.lineage.edges
    assert ("reward@1", "check@1") in details.record.lineage.edges
    position = {node.id: i for i, node in enumerate(nodes)}
    assert all(position[source] < position[target] for source, target in details.record.lineage.edges)
    assert details.record.chat_template == nodes[0].chat_template
    assert details.record.provenance.commit == "cd" * 20
    json.loads(details.model_dump_json())


def test_a_refused_version_is_a_candidate_and_the_champion_stays(add: Register, workspace: Workspace) -> None:
    add(seed=0)
    refused = add(seed=1, win=0.4)
    assert (refused.version, refused.aliases, refused.passed) == (2, ("candidate",), False)
    assert find(workspace, "policy@champion").version == 1
    assert find(workspace, "policy").version == 1
    assert [version.version for version in list_versions(workspace)] == [2, 1]


def test_whose_level_a_look_was_held_to_makes_no_other_version(
    workspace: Workspace,
    recipe: Recipe,
    provenance: Provenance,
    make_run: Callable[..., Run],
    judge: Callable[[Run], GateVerdict],
) -> None:
    """A run by hand and a deployed one decide alike at a first look: one version. At another level they do not."""
    run = make_run()
    for look, version in (
        (GateLook(number=1, prompts=11, level=0.025, spends=False), 1),
        (GateLook(number=1, prompts=11, level=0.025, spends=True), 1),
        (GateLook(number=2, prompts=11, level=0.0125, spends=True), 2),
    ):
        verdict = judge(run).model_copy(update={"look": look})
        assert register(workspace, recipe, run, "dpo", verdict, provenance).version == version


def test_registering_the_same_again_changes_nothing(
    workspace: Workspace,
    recipe: Recipe,
    provenance: Provenance,
    make_run: Callable[..., Run],
    judge: Callable[[Run], GateVerdict],
) -> None:
    first, second = make_run(0), make_run(1)
    one = register(workspace, recipe, first, "dpo", judge(first), provenance)
    two = register(workspace, recipe, second, "dpo", judge(second), provenance)
    again = register(workspace, recipe, first, "dpo", judge(first), provenance)
    assert (again.version, again.aliases, again.mlflow_run) == (1, (), one.mlflow_run)
    assert find(workspace, "policy@champion").version == two.version == 2
    assert len(list_versions(workspace)) == 2
    assert len(show(workspace, "policy/1").history) == 2


def test_rollback_walks_back_through_the_champions(add: Register, workspace: Workspace) -> None:
    for seed in range(3):
        add(seed=seed)
    assert [rollback(workspace, "policy").version for _ in range(2)] == [2, 1]
    with pytest.raises(InputError, match="no version of policy was champion before"):
        rollback(workspace, "policy")
    assert promote(workspace, "policy/3").aliases == ("champion",)
    assert rollback(workspace, "policy").version == 1
    assert [change.version for change in show(workspace, "policy/1").history] == [1, 2, 3, 2, 1, 3, 1]


def test_promote_refuses_what_the_gate_refused_unless_told(add: Register, workspace: Workspace) -> None:
    add(win=0.3)
    with pytest.raises(InputError, match="the gate refused policy v1"):
        promote(workspace, "policy/1")
    with pytest.raises(InputError, match="no reason is given"):
        promote(workspace, "policy/1", despite_gate=True, reason=" ")
    forced = promote(workspace, "policy/1", despite_gate=True, by="ada", reason="the other is withdrawn")
    assert forced.aliases == ("candidate", "champion")
    [change] = show(workspace, "policy/1").history
    assert change.why == "promoted despite the gate by ada: the other is withdrawn"


def test_a_version_that_waits_for_a_person_is_approved_by_promoting_it(
    workspace: Workspace, recipe: Recipe, provenance: Provenance, make_run: Callable[..., Run],
    judge: Callable[[Run], GateVerdict],
) -> None:  # fmt: skip
    run = make_run()
    verdict = judge(run).model_copy(update={"passed": False, "waits": True})
    version = register(workspace, recipe, run, "dpo", verdict, provenance)
    assert (version.aliases, version.passed, version.waits) == (("candidate",), False, True)
    assert "a person has yet to approve it" in (Path(version.folder) / "README.md").read_text()
    approved = promote(workspace, "policy/1", by="ada")
    assert (approved.aliases, approved.waits) == (("candidate", "champion"), False)
    assert [change.why for change in show(workspace, "policy/1").history] == ["approved by ada"]
    assert register(workspace, recipe, run, "dpo", verdict, provenance) == approved  # moves no alias back


def test_the_champion_as_an_opponent_is_the_one_before_the_candidate(
    workspace: Workspace, recipe: Recipe, provenance: Provenance, make_run: Callable[..., Run],
    judge: Callable[[Run], GateVerdict],
) -> None:  # fmt: skip
    runs = [make_run(seed=seed) for seed in range(2)]
    assert champion_artifact(workspace, "policy", runs[0]["dpo"], runs[0]["base"]) is None
    register(workspace, recipe, runs[0], "dpo", judge(runs[0]), provenance)
    assert champion_artifact(workspace, "policy", runs[0]["dpo"], runs[0]["base"]) is None  # not held against itself
    assert champion_artifact(workspace, "policy", runs[1]["dpo"], runs[1]["base"]) == runs[0]["dpo"]
    register(workspace, recipe, runs[1], "dpo", judge(runs[1]), provenance)
    assert champion_artifact(workspace, "policy", runs[1]["dpo"], runs[1]["base"]) == runs[0]["dpo"]
    other = runs[0]["base"].model_copy(update={"digest": "another base"})
    with pytest.raises(StageError, match="adapter on another base"):
        champion_artifact(workspace, "policy", runs[1]["dpo"], other)


def test_a_champion_with_whole_weights_meets_candidates_of_another_base(
    workspace: Workspace, recipe: Recipe, provenance: Provenance, make_run: Callable[..., Run],
    judge: Callable[[Run], GateVerdict],
) -> None:  # fmt: skip
    runs = [make_run(seed=seed) for seed in range(2)]
    merged = (
        recipe.model_copy(update={"gate": recipe.gate.model_copy(update={"merge": True})}) if recipe.gate else recipe
    )
    register(workspace, merged, runs[0], "dpo", judge(runs[0]), provenance,
             merge=lambda _artifact, target: shutil.copytree(runs[0]["base"].path, target))  # fmt: skip
    other = runs[0]["base"].model_copy(update={"digest": "another base"})
    found = champion_artifact(workspace, "policy", runs[1]["dpo"], other)
    assert found is not None
    assert (found.name, found.kind) == ("champion", "model")
    assert (Path(found.path) / "model.safetensors").exists()
    assert found.digest == folder_digest(Path(found.path))
    assert champion_artifact(workspace, "policy", runs[1]["dpo"], other) == found  # published once
    assert show(workspace, "policy/1").intact


@pytest.mark.parametrize(
    ("reference", "meant"),
    [("polcy@champion", "policy@champion"), ("policy@champoin", "policy@champion"), ("policy/7", "policy/1")],
)
def test_unknown_names_are_the_users_error_with_the_nearest(
    add: Register, workspace: Workspace, reference: str, meant: str
) -> None:
    add()
    with pytest.raises(InputError, match=rf"; did you mean {meant}\?$"):
        show(workspace, reference)


def test_a_name_like_none_is_answered_with_what_there_is(add: Register, workspace: Workspace) -> None:
    add()
    with pytest.raises(InputError, match=r"there is no registered model 'x'; known here: policy@champion, policy/1$"):
        show(workspace, "x/1")


def test_an_empty_workspace_has_no_versions_and_no_store_is_made(tmp_path: Path) -> None:
    assert list_versions(Workspace(tmp_path)) == []
    with pytest.raises(InputError, match="there is no registered model 'policy'"):
        find(Workspace(tmp_path), "policy@champion")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("damaged", "named"),
    [
        ("registry/policy/v1/adapter_model.safetensors", "adapter_model.safetensors"),
        ("registry/policy/v1/lineage.json", "lineage.json"),
        ("artifacts/votes/v1/data.jsonl", "votes@1"),
        ("artifacts/sft/v1/adapter_model.safetensors", "sft@1"),
    ],
)
def test_tampering_shows(add: Register, workspace: Workspace, damaged: str, named: str) -> None:
    add()
    (workspace.root / damaged).chmod(0o644)
    with (workspace.root / damaged).open("ab") as file:
        file.write(b" ")
    details = show(workspace, "policy/1")
    assert not details.intact
    assert set(details.problems) == {named}


def test_a_changed_record_and_a_missing_artifact_show(add: Register, workspace: Workspace) -> None:
    add()
    record = workspace.root / "artifacts/dpo/v1/artifact.json"
    record.chmod(0o644)
    record.write_text(record.read_text().replace('"version": 1', '"version": 9', 1))
    (workspace.root / "artifacts/votes/v1").rename(workspace.root / "elsewhere")
    assert set(show(workspace, "policy/1").problems) == {"dpo@1", "votes@1"}


def test_a_damaged_version_is_not_promoted(add: Register, workspace: Workspace) -> None:
    for seed in range(2):
        add(seed=seed)
    (workspace.root / "registry/policy/v1/added.bin").write_bytes(b"x")
    with pytest.raises(InputError, match="the file was added later"):
        rollback(workspace, "policy")
    assert find(workspace, "policy@champion").version == 2


def test_a_crash_before_the_alias_moved_is_mended_by_the_next_register(
    workspace: Workspace,
    recipe: Recipe,
    provenance: Provenance,
    make_run: Callable[..., Run],
    judge: Callable[[Run], GateVerdict],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = make_run()
    with monkeypatch.context() as patch:
        patch.setattr(RegistryStore, "set_champion", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            register(workspace, recipe, run, "dpo", judge(run), provenance)
    assert find(workspace, "policy/1").aliases == ()
    assert register(workspace, recipe, run, "dpo", judge(run), provenance).aliases == ("champion",)
    assert len(list_versions(workspace)) == 1


def test_a_folder_that_a_crash_left_without_an_entry_is_replaced(add: Register, workspace: Workspace) -> None:
    leftover = workspace.folder("registry", "policy", "v1")
    (leftover / "old.bin").write_bytes(b"x")
    version = add()
    assert version.version == 1
    assert not (leftover / "old.bin").exists()
    assert show(workspace, "policy/1").intact


def test_a_number_taken_by_another_workspace_is_skipped(add: Register, workspace: Workspace) -> None:
    add(seed=0)
    store = RegistryStore(workspace, "policy")
    store.client.create_model_version("policy", source="elsewhere")
    store.delete_version(2)  # MLflow never gives this number again, and does not list it
    version = add(seed=1)
    assert version.version > 2
    assert show(workspace, f"policy/{version.version}").intact
    assert [v.version for v in list_versions(workspace)] == [version.version, 1]


def test_a_moved_workspace_is_still_intact(
    add: Register, workspace: Workspace, tmp_path: Path, model_folders: tuple[Path, Path]
) -> None:
    add()
    assert model_folders[0].is_dir()
    moved = workspace.root.rename(tmp_path / "moved")
    details = show(Workspace(moved), "policy@champion")
    assert details.intact
    assert details.version.folder.startswith(str(moved.resolve()))


def test_the_run_in_mlflow_has_parameters_metrics_and_curves(add: Register, workspace: Workspace) -> None:
    version = add()
    client = RegistryStore(workspace, "policy").client
    run = client.get_run(version.mlflow_run)
    assert run.data.params["stages.dpo.learning_rate"] == "5e-06"
    assert run.data.metrics["sft/demonstrations"] == 96.0
    assert [(m.step, m.value) for m in client.get_metric_history(version.mlflow_run, "dpo/loss curve")] == [
        (1, 2.0),
        (2, 1.5),
    ]
    tags = client.get_model_version("policy", "1").tags
    assert tags["lineage.votes"].startswith("votes@1:")
    assert client.get_model_version("policy", "1").source == Path(version.folder).as_uri()


def test_merged_weights_are_written_where_the_gate_asks(
    workspace: Workspace,
    recipe: Recipe,
    provenance: Provenance,
    make_run: Callable[..., Run],
    judge: Callable[[Run], GateVerdict],
) -> None:
    run = make_run()
    asked = recipe.model_copy(update={"gate": recipe.gate.model_copy(update={"merge": True}) if recipe.gate else None})

    def merge(artifact: Artifact, target: Path) -> None:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        base = AutoModelForCausalLM.from_pretrained(run["base"].path)
        PeftModel.from_pretrained(base, artifact.path).merge_and_unload().save_pretrained(target)

    with pytest.raises(StageError, match="merged"):
        register(workspace, asked, run, "dpo", judge(run), provenance)
    version = register(workspace, asked, run, "dpo", judge(run), provenance, merge=merge)
    assert (Path(version.folder) / "merged" / "model.safetensors").exists()
    assert show(workspace, "policy@champion").intact


def test_a_broken_lineage_is_not_registered(
    workspace: Workspace,
    recipe: Recipe,
    provenance: Provenance,
    make_run: Callable[..., Run],
    judge: Callable[[Run], GateVerdict],
) -> None:
    run = make_run()
    stranger = run["votes"].ref().model_copy(update={"digest": "0" * 64})
    broken = run | {"dpo": run["dpo"].model_copy(update={"inputs": run["dpo"].inputs | {"votes": stranger}})}
    with pytest.raises(StageError, match="the lineage is broken"):
        register(workspace, recipe, broken, "dpo", judge(run), provenance)
    assert list_versions(workspace) == []


def test_the_registered_adapter_loads_without_this_project(add: Register) -> None:
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    version = add()
    model = AutoPeftModelForCausalLM.from_pretrained(version.folder)
    tokenizer = AutoTokenizer.from_pretrained(version.folder)
    ids = tokenizer("one two", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        adapted = model(input_ids=ids).logits
        with model.disable_adapter():
            plain = model(input_ids=ids).logits
    assert tuple(adapted.shape) == (1, 2, 7)
    assert not torch.allclose(adapted, plain)


def test_importing_the_registry_imports_nothing_heavy() -> None:
    code = (
        "import sys, alignment.registry; print([m for m in ('mlflow', 'torch', 'huggingface_hub') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
