"""The folder that a version is served from: its numbers, its settings, and that it is what it was."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from alignment.errors import InputError
from alignment.models.adapters import add_lora
from alignment.models.load import save_policy
from alignment.recipe.base import Lora
from alignment.records import Artifact
from alignment.workspace import Workspace
from flows.serving.served_folder import defaults_of, served_folder
from tests.flows.serving.conftest import add_version


@pytest.fixture
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that computes in float32, so that sums can be compared."""
    monkeypatch.setattr("alignment.precision._processor_flags", frozenset)


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter on the tiny model that is not at its beginning."""
    from alignment.chat import load_tokenizer
    from alignment.durable_files import folder_digest

    torch.manual_seed(1)
    model = add_lora(AutoModelForCausalLM.from_pretrained(tiny_model), Lora(rank=4, alpha=8))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    base = Artifact(
        name="base", kind="model", version=1, digest=folder_digest(tiny_model), path=str(tiny_model),
        key=str(tiny_model),
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    save_policy(model, load_tokenizer(tiny_model), base, folder)
    return folder


def test_an_adapter_is_served_merged_with_the_same_numbers(
    workspace: Workspace, adapter: Path, tiny_model: Path, in_float32: None
) -> None:
    from flows.services.model_version import load_version

    version = add_version(workspace, adapter, tiny_model)
    folder = served_folder(workspace, version)
    assert folder.name == f"policy-v{version.version}"
    model, tokenizer = load_version(version.folder, workspace)
    merged = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    ids = torch.tensor([tokenizer("What colour is the cat?")["input_ids"]])
    with torch.no_grad():
        ours, theirs, plain = (one(input_ids=ids).logits for one in (model, merged, base))
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert (ours - plain).abs().max() > 1e-2  # the adapter says something
    assert not (folder / "adapter_config.json").exists()


@pytest.mark.parametrize("settings", [None, {"do_sample": True, "temperature": 0.3, "top_k": 5, "top_p": 0.9}])
def test_settings_of_its_own_are_kept_and_greedy_ones_let_a_temperature_count(
    settings: dict[str, Any] | None, workspace: Workspace, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    made = make_model(tmp_path / "model", seed=7)
    if settings is not None:
        GenerationConfig(**settings, eos_token_id=3).save_pretrained(made)
    version = add_version(workspace, made, made)
    folder = served_folder(workspace, version)
    own = json.loads((folder / "generation_config.json").read_text("utf-8"))
    if settings is None:
        assert (own["do_sample"], own["temperature"], own["top_k"], own["top_p"]) == (True, 1.0, 0, 1.0)
        assert defaults_of(folder) == {"temperature": 0.0}
        assert own["eos_token_id"] == [1]  # <|im_end|>, the second of its special tokens
    else:
        assert {name: own[name] for name in settings} == settings
        assert defaults_of(folder) == {}
        assert own["eos_token_id"] == [1, 3]
    registered = Path(version.folder) / "generation_config.json"
    assert not registered.exists() or json.loads(registered.read_text("utf-8")) != own


def test_it_is_made_once_and_again_where_it_is_damaged(
    workspace: Workspace, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    made = make_model(tmp_path / "model", seed=8)
    version = add_version(workspace, made, made)
    folder = served_folder(workspace, version)
    before = folder.stat().st_ino
    assert served_folder(workspace, version).stat().st_ino == before
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.unlink()  # a link to the registry's own file, which stays as it is
    weights.write_bytes(whole[:-1] + b"x")
    assert served_folder(workspace, version).stat().st_ino != before
    assert weights.read_bytes() == whole
    broken = Path(version.folder) / "config.json"
    broken.chmod(0o644)
    broken.write_text(broken.read_text() + " ")
    shutil.rmtree(folder)
    with pytest.raises(InputError, match="the file has changed"):
        served_folder(workspace, version)
    assert not folder.exists()
