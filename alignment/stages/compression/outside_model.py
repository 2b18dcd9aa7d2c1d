"""The stage ``outside_model``: a registered version, a folder or a hub's model → a policy of whole weights.

Its files are copied into the artifact (a version's, which never change, are linked where the file system can), so that
what taught a model is there as long as its lineage. The artifact's ``origins`` say where it came from, and with which
digest.
"""

import fnmatch
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from alignment.durable_files import folder_digest
from alignment.errors import Fault, InputError, StageError
from alignment.models.adapters import is_adapter
from alignment.models.base_model import BASE_FILES
from alignment.models.export import export_merged
from alignment.models.hub import hub_files
from alignment.models.weights import GGUF_FILE, tensor_shapes, weight_faults
from alignment.recipe.base import BASE
from alignment.recipe.run_settings import ModelSettings, RunSettings
from alignment.recipe.stages.compression.outside_model import FOLDER, VERSION, VERSION_BASE, OutsideModelStage
from alignment.records import Artifact
from alignment.stage import StageContext, StageResult

COPIED = (*BASE_FILES, "*.bin", GGUF_FILE)
NOT_COPIED = ("artifact.json", "curves.json", "lineage.json")  # of a version's or an artifact's own folder
HOW = "give a Hugging Face model folder with whole weights"


def run(settings: OutsideModelStage, context: StageContext) -> StageResult:
    """Writes the model's folder. Raises InputError where there is none, or it is no whole model."""
    source = outside_folder(settings, context.data)
    if faults := weight_faults(source):
        raise InputError(faults)
    model = _artifact(context.name, source)
    if is_adapter(model):
        if VERSION_BASE not in context.data:
            raise StageError(f"{source} is an adapter: {HOW}")
        base = _artifact(BASE, context.data[VERSION_BASE])
        export_merged(model, base, _as_it_was_trained(context.run, source), context.output)
    else:
        for path in sorted(source.iterdir()):
            if path.is_file() and path.name not in NOT_COPIED and _matches(path.name, COPIED):
                _put(path, context.output / path.name, link=settings.version is not None)
    parameters = sum(math.prod(shape) for shape in tensor_shapes(context.output).values())
    return StageResult("model", {"parameters": float(parameters)}, origins=(_origin(settings, source, model.digest),))


def outside_folder(
    settings: OutsideModelStage, data: Mapping[str, Path], patterns: Sequence[str] = BASE_FILES, field: str = "hub"
) -> Path:
    """Where the model's files are: ``data`` has a folder's and a version's, and of a hub's those of ``patterns`` are
    brought. Raises InputError, with ``field``, where the hub does not give them."""
    if settings.hub is not None:
        return hub_files(ModelSettings(base=settings.hub, revision=settings.revision), patterns, field=field)
    folder = data[FOLDER if settings.folder is not None else VERSION]
    if not (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file():
        problem = f"{folder} is no model's folder" if folder.is_dir() else f"no folder {folder}"
        raise InputError([Fault(problem, HOW, file=str(folder))])
    return folder


def _artifact(name: str, folder: Path) -> Artifact:
    digest = folder_digest(folder)
    return Artifact(name=name, kind="model", version=1, digest=digest, path=str(folder), key=digest)


def _as_it_was_trained(run: RunSettings, adapter: Path) -> RunSettings:
    """The run's settings with the base held as the adapter was trained on it."""
    scheme = json.loads((adapter / "base.json").read_text("utf-8")).get("quantise")
    return run.model_copy(update={"model": run.model.model_copy(update={"quantise": scheme})})


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _put(source: Path, target: Path, *, link: bool) -> None:
    """A file of the artifact. Only what never changes is linked: who writes into a linked file writes into both."""
    if link:
        try:
            os.link(source, target)
            return
        except OSError:  # another file system, or one without links
            pass
    shutil.copyfile(source, target)


def _origin(settings: OutsideModelStage, source: Path, digest: str) -> str:
    if settings.version is not None:
        folder = source if (source / "lineage.json").is_file() else source.parent  # of a version's merged weights
        record = json.loads((folder / "lineage.json").read_text("utf-8"))
        where = f"version {record['name']}/{record['version']}"
    elif settings.folder is not None:
        where = f"folder {settings.folder}"
    else:
        where = f"hub {settings.hub}" + (f"@{settings.revision}" if settings.revision else "")
    return f"{where}, digest {digest}"
