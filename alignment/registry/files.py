"""A version's folder: a plain Hugging Face model, and whether it still is what was registered."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from alignment.durable_files import file_digest, write_text
from alignment.errors import Fault, InputError
from alignment.recipe.base import BASE, STAGE_PREFIX
from alignment.records import Artifact
from alignment.registry.records import VersionRecord

CARD_FILE = "README.md"
LINEAGE_FILE = "lineage.json"
ADAPTER_FILE = "adapter_config.json"
LEFT_BEHIND = ("artifact.json", "curves.json", "snapshots")  # what belongs to the training, not to the version
Merge = Callable[[Artifact, Path], None]


def is_adapter(artifact: Artifact) -> bool:
    """Whether a model artifact is an adapter (else whole weights)."""
    return (Path(artifact.path) / ADAPTER_FILE).exists()


def write_model(target: Path, artifact: Artifact, artifacts: Mapping[str, Artifact], merge: Merge | None) -> None:
    """Copies a model into a new folder, in a form that loads without this project.

    An adapter's base is named as the recipe names it, which only this project understands for embedded models, and
    which depends on the current folder for relative paths: those become the base's own folder.
    """
    shutil.copytree(artifact.path, target, ignore=shutil.ignore_patterns(*LEFT_BEHIND))
    base = artifacts.get(BASE)
    if is_adapter(artifact) and base is not None and not names_a_hub_model(base):
        config = json.loads((target / ADAPTER_FILE).read_text("utf-8"))
        config["base_model_name_or_path"] = base.path
        write_text(target / ADAPTER_FILE, json.dumps(config, indent=2) + "\n")
    if merge is not None:
        merge(artifact, target / "merged")


def names_a_hub_model(base: Artifact) -> bool:
    """Whether a recipe's base model is a hub name (else an embedded model, a folder or what a stage made)."""
    return not base.key.startswith(("embedded:", STAGE_PREFIX)) and not Path(base.key).is_dir()


def model_files(folder: Path) -> dict[str, str]:
    """SHA-256 by relative path of a version's files, its card and ``lineage.json`` left out."""
    own = (folder / LINEAGE_FILE, folder / CARD_FILE)
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path not in own)
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in paths}


def read_record(folder: Path, lineage_sha256: str) -> tuple[VersionRecord | None, dict[str, str]]:
    """A version's record, and what is wrong with its folder, by file; nothing where it is as registered."""
    path = folder / LINEAGE_FILE
    if not path.exists():
        return None, {LINEAGE_FILE: "the file is gone"}
    problems = {} if file_digest(path) == lineage_sha256 else {LINEAGE_FILE: "the file has changed"}
    try:
        record = VersionRecord.model_validate_json(path.read_bytes())
    except ValueError:
        return None, {LINEAGE_FILE: "the file cannot be read"}
    here = model_files(folder)
    for name in sorted(record.files.keys() | here.keys()):
        if name not in here:
            problems[name] = "the file is gone"
        elif name not in record.files:
            problems[name] = "the file was added later"
        elif here[name] != record.files[name]:
            problems[name] = "the file has changed"
    return record, problems


def require_whole(folder: Path, lineage_sha256: str) -> None:
    """Raises InputError where a version's folder is not what was registered."""
    _record, problems = read_record(folder, lineage_sha256)
    if problems:
        remedy = "restore it, or remove the folder and register the candidate again"
        raise InputError([Fault(problem, remedy, file=str(folder / name)) for name, problem in problems.items()])
