"""The base model as an artifact: where it is, and its digest."""

import logging
import shutil
import time
from pathlib import Path

from filelock import FileLock

from alignment.digest_memory import remember_digest, remembered_digest
from alignment.digests import digest_of
from alignment.durable_files import (
    folder_digest,
    make_read_only,
    remove_tree,
    rename_synced,
    temporary_beside,
    write_text,
)
from alignment.models import embedded
from alignment.models.hub import hub_files
from alignment.recipe.base import BASE
from alignment.recipe.run_settings import ModelSettings
from alignment.records import Artifact
from alignment.workspace import Workspace

BASE_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")  # no pickles

_log = logging.getLogger(__name__)


def prepare_base(workspace: Workspace, settings: ModelSettings) -> Artifact:
    """Finds, downloads or converts the base model. Only a hub name reaches for the network.

    The artifact's ``key`` is the model's name as the recipe gives it; its ``work_seconds`` are what a conversion took,
    0 where there was none to do. Raises InputError where there is no such model.
    """
    started, work_seconds = time.perf_counter(), 0.0
    if settings.base.startswith("embedded:"):
        name = settings.base.removeprefix("embedded:")
        folder, converted = _embedded(workspace, name)
        work_seconds = time.perf_counter() - started if converted else 0.0
    elif Path(settings.base).is_dir():
        folder = Path(settings.base).resolve()
    else:
        folder = hub_files(settings, BASE_FILES)
    digest = remembered_digest(folder, _memory(workspace, folder))
    return Artifact(
        name=BASE,
        kind="model",
        version=1,
        digest=digest,
        path=str(folder),
        key=settings.base,
        work_seconds=work_seconds,
    )


def own_place(workspace: Workspace, base: str) -> str:
    """A base model's name, as this workspace has it: a version, or an artifact, that lies in a workspace is its own.

    A model that was trained on a promoted version names it by the path that the workspace had then, and so does one
    whose base a stage made.
    """
    parts = Path(base).parts
    for place in [place for place, part in enumerate(parts) if part in ("registry", "artifacts")][::-1]:
        own = workspace.root.resolve().joinpath(*parts[place:])
        if Path(base).is_absolute() and own.is_dir():
            return str(own)
    return base


def _embedded(workspace: Workspace, name: str) -> tuple[Path, bool]:
    """The folder of a converted model, and whether it was converted just now.

    Its digest stands beside it. A folder that is no longer what was converted is said in a line and made again.
    """
    folder = workspace.folder("models") / name
    digest_file = folder.with_name(f"{name}.sha256")
    with FileLock(folder.with_name(f"{name}.lock")):
        if folder.exists():
            digest = remembered_digest(folder, _memory(workspace, folder))
            if not digest_file.exists():  # it was converted before digests were kept
                write_text(digest_file, digest + "\n")
            if digest_file.read_text("utf-8").strip() == digest:
                return folder, False
            _log.warning("the base model in %s is damaged and is not used; it is converted again", folder)
            remove_tree(folder)
        temporary = temporary_beside(folder)
        try:
            embedded.convert(name, temporary)
            digest = folder_digest(temporary)
            write_text(digest_file, digest + "\n")
            make_read_only(temporary)
            rename_synced(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        remember_digest(folder, digest, _memory(workspace, folder))
    return folder, True


def _memory(workspace: Workspace, folder: Path) -> Path:
    """Where a model's digest is remembered: by its place in the workspace, or by its path outside."""
    root = workspace.root.resolve()
    inside = folder.relative_to(root).as_posix() if folder.is_relative_to(root) else str(folder)
    return root / "digests" / "models" / f"{digest_of(inside)[:32]}.json"
