"""`rlhf push`: what leaves, what stays, and that nothing of this machine is in it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from alignment.durable_files import file_digest, folder_digest
from alignment.registry import RegisteredVersion
from alignment.registry.publication import without_places
from alignment.workspace import Workspace
from tests.flows.conftest import call
from tests.flows.serving.conftest import add_version
from tests.hub_server import Hub

SECRET = "hf_0123456789abcdefghij"


@pytest.fixture(scope="module")
def base(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("somebodys") / "private-folder" / "own-base")


@pytest.fixture(scope="module")
def workspace(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """An adapter as policy/1 and whole weights as policy/2."""
    from transformers import AutoModelForCausalLM

    from alignment.chat import load_tokenizer
    from alignment.models.adapters import add_lora
    from alignment.models.load import save_policy
    from alignment.recipe.base import Lora
    from alignment.records import Artifact

    torch.manual_seed(1)
    model = add_lora(AutoModelForCausalLM.from_pretrained(base), Lora(rank=4, alpha=8))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    named = Artifact(name="base", kind="model", version=1, digest=folder_digest(base), path=str(base), key=str(base))
    root = tmp_path_factory.mktemp("somebodys") / "workspace"
    save_policy(model, load_tokenizer(base), named, root / "made" / "adapter")
    space = Workspace(root)
    add_version(space, root / "made" / "adapter", base)
    add_version(space, base, base)
    return space


def version_of(workspace: Workspace, number: int) -> RegisteredVersion:
    from alignment.registry import find

    return find(workspace, f"policy/{number}")


def files_of(folder: Path) -> dict[str, int]:
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def test_first_it_is_listed_and_then_pushed_whole(workspace: Workspace, base: Path, tmp_path: Path) -> None:
    target = tmp_path / "out" / "published"
    arguments = ("push", "policy/1", target, "--merged", "--json", "--workspace", workspace.root)
    listed = call(*arguments)
    assert (listed.code, listed.err) == (0, "")
    assert not target.exists()
    assert list(target.parent.iterdir()) == []  # nothing is left of the look
    said = json.loads(listed.out)
    assert said["pushed"] is False
    pushed = call(*arguments, "--yes")
    assert (pushed.code, pushed.err) == (0, "")
    assert json.loads(pushed.out)["pushed"] is True
    assert files_of(target) == said["files"]
    assert {
        "README.md", "lineage.json", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json",
        "chat_template.jinja", "merged/config.json", "merged/model.safetensors", "merged/tokenizer.json",
    } <= set(said["files"])  # fmt: skip
    assert "curves.json" not in said["files"]

    # Nothing names a place of this machine, byte by byte.
    here = [str(workspace.root), str(base), str(base.parent), str(Path.cwd()), str(tmp_path)]
    for path in target.rglob("*"):
        if path.is_file():
            assert [word for word in here if word.encode() in path.read_bytes()] == [], path
    config = json.loads((target / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "own-base"
    assert "private-folder" not in (target / "README.md").read_text()

    # What its lineage says of the files is so, and leads back to the registered version.
    lineage = json.loads((target / "lineage.json").read_text())
    version = version_of(workspace, 1)
    assert lineage["registered_lineage_sha256"] == version.lineage_sha256
    assert lineage["candidate"]["digest"] == version.candidate.digest
    assert lineage["files"] == {
        name: file_digest(target / name) for name in files_of(target) if name not in ("README.md", "lineage.json")
    }
    # Others load it: merged is the base and the adapter.
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(plain, target).eval()
    merged = AutoModelForCausalLM.from_pretrained(target / "merged", dtype=torch.float32).eval()
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        assert torch.allclose(
            adapted(input_ids=ids).logits, merged(input_ids=ids).logits, atol=0.05
        )  # bfloat16 at most


def test_without_merged_the_adapter_alone(workspace: Workspace, tmp_path: Path) -> None:
    listed = call("push", "policy/1", tmp_path / "new", "--workspace", workspace.root)
    assert listed.code == 0
    assert "merged/" not in listed.out
    assert f"nothing was pushed; --yes pushes this to {tmp_path / 'new'}" in listed.out
    assert "bytes in" in listed.out
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("policy/1",), "one place to push to is needed; give a folder, or --hub ORGANISATION/NAME"),
        (("policy/1", "out", "--hub", "a/b"), "one place to push to is needed"),
        (("policy/1", "--hub", "no hub!"), "write ORGANISATION/NAME"),
        (("policy/1", "--hub", "alone"), "write ORGANISATION/NAME"),
        (("policy/1", "out", "--public"), "--public: a folder is neither public nor private"),
        (("policy/2", "out", "--merged"), "policy v2 is no adapter: it has nothing to merge; leave out --merged"),
        (("policy/9", "out"), "there is no version 9 of policy"),
    ],
)
def test_what_is_refused(
    arguments: tuple[str, ...], line: str, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = call("push", *arguments, "--yes", "--workspace", workspace.root)
    assert ended.code == 2
    [said] = ended.err.splitlines()
    assert line in said
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_left_alone(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    ended = call("push", "policy/2", tmp_path, "--yes", "--workspace", workspace.root)
    assert (ended.code, "is there already, and not empty; give a new folder" in ended.err) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_secret_in_a_file_does_not_leave(
    workspace: Workspace, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    model = tmp_path / "model"
    shutil.copytree(base, model)
    (model / "notes.txt").write_text(f"use {SECRET} to fetch it")
    version = add_version(workspace, model, base)
    monkeypatch.setenv("SOME_API_TOKEN", SECRET)
    ended = call("push", f"policy/{version.version}", tmp_path / "out", "--yes", "--workspace", workspace.root)
    assert ended.code == 1
    assert ended.err == "rlhf: nothing was pushed: notes.txt holds the value of SOME_API_TOKEN\n"
    assert not (tmp_path / "out").exists()
    monkeypatch.delenv("SOME_API_TOKEN")
    (model / "notes.txt").write_text(f"made in {workspace.root}/made")
    version = add_version(workspace, model, base)
    ended = call("push", f"policy/{version.version}", tmp_path / "out", "--yes", "--workspace", workspace.root)
    assert ended.err == "rlhf: nothing was pushed: notes.txt holds a folder of this machine\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- **Base model:** `/srv/ada/models/own`, as `/srv/ada/models/own`", "- **Base model:** `own`, as `own`"),
        ("/srv/x/prompts.jsonl", "prompts.jsonl"),
        ("see https://example.org/a/b and path/to/this/folder, 1/2/3 and/or", None),
        ("<|im_start|> </tool/call> HuggingFaceTB/SmolLM2-135M-Instruct", None),
    ],
)
def test_places_are_shortened(text: str, expected: str | None) -> None:
    assert without_places(text) == (text if expected is None else expected)


def test_to_a_hub_in_real_requests(hub: Hub, workspace: Workspace, tmp_path: Path) -> None:
    environment = hub.environment(tmp_path, SECRET)

    def push(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "flows.cli", "push", "policy/1", "--hub", "org/name", *options]
        command += ["--workspace", str(workspace.root)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250, check=False)

    looked = push()
    assert looked.returncode == 0, looked.stderr
    assert (hub.created, hub.files, hub.tokens) == ([], {}, set())  # a look asks nobody
    pushed = push("--yes")
    assert pushed.returncode == 0, pushed.stderr
    assert "pushed to org/name" in pushed.stdout
    [created] = hub.created
    assert (created["name"], created.get("organization"), created["visibility"]) == ("name", "org", "private")
    folder = tmp_path / "same"
    assert call("push", "policy/1", folder, "--yes", "--workspace", workspace.root).code == 0
    assert hub.files == {name: (folder / name).read_bytes() for name in files_of(folder)}
    assert hub.tokens == {f"Bearer {SECRET}"}
    assert SECRET not in pushed.stdout + pushed.stderr
    hub.refuses = True
    refused = push("--yes")
    assert refused.returncode == 1
    [line] = refused.stderr.splitlines()
    assert line.startswith(f"rlhf: {hub.url} refused org/name (403, ")
    assert line.endswith("set HF_TOKEN to one that may do this, or `hf auth login`")
