"""A version as a folder that any server of transformers' models loads: whole weights, its template, its defaults.

Adapters are merged and GGUF files unpacked, once a version; other files are linked. The folder is kept in the workspace
and held against its digest before it is served again.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from filelock import FileLock

from alignment.durable_files import (
    folder_digest,
    make_read_only,
    remove_tree,
    rename_synced,
    temporary_beside,
    write_text,
)
from alignment.registry import RegisteredVersion
from alignment.registry.files import ADAPTER_FILE, CARD_FILE, LINEAGE_FILE, require_whole
from alignment.workspace import Workspace
from flows.services.model_version import export_plain

GENERATION_FILE = "generation_config.json"
_NOT_SERVED = (CARD_FILE, LINEAGE_FILE, GENERATION_FILE, "merged")


def served_folder(workspace: Workspace, version: RegisteredVersion) -> Path:
    """Makes the folder, or finds the one that was made before. Beside it stands what requests are given by default.

    Raises InputError where the version is no longer what was registered, or cannot be loaded.
    """
    home = workspace.folder("serving", version.name)
    folder, record = home / f"{version.name}-v{version.version}", home / f"{version.name}-v{version.version}.json"
    with FileLock(folder.with_suffix(".lock")):
        if _is_kept(folder, record, version):
            return folder
        require_whole(Path(version.folder), version.lineage_sha256)
        temporary = temporary_beside(folder)
        temporary.mkdir()
        try:
            defaults = _write(workspace, version, temporary)
            make_read_only(temporary)
            remove_tree(folder)
            made_of = {"lineage_sha256": version.lineage_sha256, "digest": folder_digest(temporary)}
            write_text(record, json.dumps(made_of | {"defaults": defaults}, indent=1) + "\n")
            rename_synced(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def defaults_of(folder: Path) -> dict[str, float]:
    """What a request is given that does not say it: ``temperature`` 0 where the version's own settings are greedy."""
    defaults: dict[str, float] = json.loads(folder.with_name(f"{folder.name}.json").read_text("utf-8"))["defaults"]
    return defaults


def _is_kept(folder: Path, record: Path, version: RegisteredVersion) -> bool:
    try:
        made_of = json.loads(record.read_text("utf-8"))
        return bool(
            made_of["lineage_sha256"] == version.lineage_sha256 and folder_digest(folder) == made_of["digest"] != ""
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write(workspace: Workspace, version: RegisteredVersion, target: Path) -> dict[str, float]:
    """Writes the folder's files; returns its defaults."""
    from alignment.models.quantised import quantisation

    folder = Path(version.folder)
    source = folder / "merged" if (folder / "merged").is_dir() else folder
    if (source / ADAPTER_FILE).exists() or quantisation(source) == "gguf":
        export_plain(version.folder, workspace, target)
        settings = target
    else:
        for path in source.iterdir():
            if path.name not in _NOT_SERVED and path.is_file():
                _link(path, target / path.name)
        settings = source
    return _write_generation_settings(settings, target)


def _write_generation_settings(source: Path, target: Path) -> dict[str, float]:
    """The version's own settings, with every token that ends a turn, so that a request's temperature counts.

    transformers' server draws only where the settings say so, whatever temperature a request names. Where the version's
    do not, they are made to, plainly, and requests without a temperature are given 0, which is greedy.
    """
    from transformers import AutoConfig, GenerationConfig

    from alignment.chat import load_tokenizer

    if (source / GENERATION_FILE).exists():
        settings = GenerationConfig.from_pretrained(source)
    else:
        settings = GenerationConfig.from_model_config(AutoConfig.from_pretrained(source))
    tokenizer = load_tokenizer(source)
    settings.eos_token_id = sorted(_listed(settings.eos_token_id) | {tokenizer.eos_token_id})
    if settings.pad_token_id is None:
        settings.pad_token_id = tokenizer.pad_token_id
    defaults: dict[str, float] = {}
    if not settings.do_sample:
        settings.do_sample, settings.temperature, settings.top_k, settings.top_p = True, 1.0, 0, 1.0
        defaults["temperature"] = 0.0
    (target / GENERATION_FILE).unlink(missing_ok=True)
    settings.save_pretrained(target)
    return defaults


def _listed(ids: Any) -> set[int]:
    return set(ids) if isinstance(ids, list) else {ids} - {None}


def _link(source: Path, target: Path) -> None:
    """Links a file of the registry, which is read-only; copies it where the file system cannot."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
