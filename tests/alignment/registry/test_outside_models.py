"""A registered version as a teacher: an adapter, merged into the base that it was made on, and its whole identity."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from alignment.durable_files import folder_digest
from alignment.errors import InputError
from alignment.evaluation.gate import GateVerdict
from alignment.recipe.recipe import Recipe
from alignment.records import Artifact
from alignment.registry import Provenance, register
from alignment.registry.lineage import problems, trace
from alignment.registry.outside_models import version_files
from alignment.stages.compression.outside_model import run as bring
from alignment.workspace import Workspace
from flows.pipeline.stage_task import make_job
from tests.contexts import stage_context

IDS = torch.tensor([[3, 5, 6, 1, 4]])
Run = dict[str, Artifact]


def registered(
    workspace: Workspace, recipe: Recipe, run: Run, verdict: GateVerdict, provenance: Provenance
) -> Mapping[str, Any]:
    version = register(workspace, recipe, run, "dpo", verdict, provenance)
    return {"folder": Path(version.folder), "name": str(version)}


@pytest.fixture
def teaching(recipe: Recipe) -> Recipe:
    stages = {"teacher": {"kind": "outside_model", "version": "policy@champion"}}
    other = {"stages": stages, "gate": None, "resources": {"device": "cpu"}}
    model = {"base": "tiny-base", "dtype": "float32"}
    return Recipe.model_validate({**recipe.model_dump(mode="json"), **other, "model": model})


def test_a_versions_adapter_is_merged_into_its_own_base(
    workspace: Workspace,
    recipe: Recipe,
    teaching: Recipe,
    provenance: Provenance,
    make_run: Callable[..., Run],
    judge: Callable[[Run], GateVerdict],
    tmp_path: Path,
) -> None:
    """The recipe that reads the version need not begin with the base that the version's adapter stands on."""
    run = make_run()
    version = registered(workspace, recipe, run, judge(run), provenance)
    job = make_job("teacher", teaching, {}, {}, workspace)
    assert (job.data["version"], job.data["version_base"]) == (version["folder"], Path(run["base"].path))
    (tmp_path / "made").mkdir()
    context = stage_context("teacher", teaching, {}, job.data, tmp_path / "made", tmp_path)
    result = bring(teaching.stages["teacher"], context)  # type: ignore[arg-type]
    assert result.origins == (f"version policy/1, digest {folder_digest(version['folder'])}",)
    alone = AutoModelForCausalLM.from_pretrained(tmp_path / "made").eval()
    independent = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(run["base"].path), version["folder"]
    ).eval()
    bare = AutoModelForCausalLM.from_pretrained(run["base"].path).eval()
    with torch.no_grad():
        assert torch.allclose(alone(IDS).logits, independent(IDS).logits, atol=1e-5)
        assert not torch.allclose(alone(IDS).logits, bare(IDS).logits, atol=1e-3)
    assert not (tmp_path / "made" / "adapter_config.json").exists()


def test_another_champion_is_another_key(
    workspace: Workspace,
    recipe: Recipe,
    teaching: Recipe,
    provenance: Provenance,
    make_run: Callable[..., Run],
    judge: Callable[[Run], GateVerdict],
) -> None:
    keys = []
    for seed in (0, 1):
        run = make_run(seed)
        registered(workspace, recipe, run, judge(run), provenance)
        keys.append(make_job("teacher", teaching, {}, {}, workspace).key)
        assert make_job("teacher", teaching, {}, {}, workspace).key == keys[-1]
    assert keys[0] != keys[1]
    with pytest.raises(InputError, match="policy has no alias 'nobody'"):
        version_files(workspace, "policy@nobody")


def test_origins_stand_in_the_lineage(workspace: Workspace) -> None:
    """And a record whose origins are changed afterwards is told from what was registered."""
    output = workspace.folder("partial") / "answers"
    output.mkdir(parents=True)
    (output / "responses.jsonl").write_text("{}\n")
    draft = Artifact(
        name="answers", kind="responses", version=1, digest=folder_digest(output), path=str(output), key="answers",
        origins=("server http://teacher/v1, model big",),
    )  # fmt: skip
    made = workspace.publish(draft, output)
    lineage = trace(workspace, {"answers": made}, ["answers"])
    assert lineage.nodes[0].origins == ("server http://teacher/v1, model big",)
    assert problems(workspace, lineage) == {}
    record = Path(made.path) / "artifact.json"
    record.chmod(0o644)
    changed = json.loads(record.read_text()) | {"origins": ["server http://elsewhere/v1, model big"]}
    record.write_text(json.dumps(changed))
    assert problems(workspace, lineage) == {"answers@1": "its record has changed"}


def test_a_job_of_another_stage_has_no_version(teaching: Recipe, workspace: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    stages = {"teacher": teaching.stages["teacher"].model_copy(update={"version": None, "folder": "model"})}
    job = make_job("teacher", teaching.model_copy(update={"stages": stages}), {}, {"folder:model": folder}, workspace)
    assert job.data == {"folder": folder}
    before = job.key
    (folder / "config.json").write_text('{"other": 1}')
    assert replace(job).key != before
