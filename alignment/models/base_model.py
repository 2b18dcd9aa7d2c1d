"""The base model as an artifact: where it is, and its digest."""

import json
import time
from pathlib import Path

from alignment.errors import Fault, InputError
from alignment.models import embedded
from alignment.recipe.base import BASE
from alignment.recipe.run_settings import ModelSettings
from alignment.records import Artifact
from alignment.workspace import Workspace, folder_digest, write_text


def prepare_base(workspace: Workspace, settings: ModelSettings) -> Artifact:
    """Finds, downloads or converts the base model. Only a hub name reaches for the network.

    The artifact's ``key`` is the model's name as the recipe gives it; its ``work_seconds`` are what a conversion took,
    0 where there was none to do. Raises InputError where there is no such model.
    """
    started, work_seconds = time.perf_counter(), 0.0
    if settings.base.startswith("embedded:"):
        name = settings.base.removeprefix("embedded:")
        folder = workspace.folder("models") / name
        if not folder.exists():
            embedded.convert(name, folder)
            work_seconds = time.perf_counter() - started
    elif Path(settings.base).is_dir():
        folder = Path(settings.base).resolve()
    else:
        folder = _download(settings)
    digest = _digest(workspace, folder)
    return Artifact(
        name=BASE,
        kind="model",
        version=1,
        digest=digest,
        path=str(folder),
        key=settings.base,
        work_seconds=work_seconds,
    )


def _download(settings: ModelSettings) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    patterns = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]  # no pickles
    try:
        return Path(snapshot_download(settings.base, revision=settings.revision, allow_patterns=patterns))
    except (OSError, HFValidationError) as error:
        problem = f"no model {settings.base!r}: not a folder here, and the hub says {str(error).splitlines()[0]}"
        remedy = "give a folder, a hub name that can be reached, or embedded:smollm2-135m"
        raise InputError([Fault(problem, remedy, field="model.base")]) from error


def _digest(workspace: Workspace, folder: Path) -> str:
    """The folder's digest, remembered by its files' sizes and times: hashing large weights takes minutes."""
    stamp = json.dumps([[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in sorted(folder.iterdir())])
    memory = workspace.folder("models") / "digests.json"
    known: dict[str, list[str]] = json.loads(memory.read_text("utf-8")) if memory.exists() else {}
    if known.get(str(folder), ["", ""])[0] != stamp:
        known[str(folder)] = [stamp, folder_digest(folder)]
        write_text(memory, json.dumps(known, indent=1))
    return known[str(folder)][1]
