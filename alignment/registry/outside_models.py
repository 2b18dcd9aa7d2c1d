"""A registered version as a model that a stage reads: its weights, and what its adapter stands on."""

import json
from pathlib import Path

from alignment.errors import Fault, InputError
from alignment.models.base_model import own_place, prepare_base
from alignment.recipe.base import STAGE_PREFIX
from alignment.recipe.files import EMBEDDED_PREFIX, is_path
from alignment.recipe.run_settings import ModelSettings
from alignment.recipe.stages.compression.outside_model import VERSION, VERSION_BASE
from alignment.registry.files import ADAPTER_FILE
from alignment.registry.versions import find
from alignment.workspace import Workspace


def version_files(workspace: Workspace, reference: str) -> dict[str, Path]:
    """The folder of a version's weights, merged ones where it has them, and of an adapter that of its base.

    Raises InputError where there is no such version, or its files or its base's are not to be had.
    """
    folder = Path(find(workspace, reference).folder)
    weights = folder / "merged" if (folder / "merged").is_dir() else folder
    if not (weights / ADAPTER_FILE).exists():
        return {VERSION: weights}
    base = Path(base_of(weights, workspace))
    if not base.is_dir():
        base = Path(prepare_base(workspace, ModelSettings(base=str(base))).path)
    return {VERSION: weights, VERSION_BASE: base}


def base_of(adapter: Path, workspace: Workspace) -> str:
    """What an adapter applies to: one of ours, the very model that it was made on, wherever the workspace is now.

    Its ``adapter_config.json`` names a folder, which a copied workspace must not read. Raises InputError where the
    model is not to be had, or is no longer what the adapter was made on.
    """
    record = adapter / "base.json"
    if not record.exists():  # an adapter from elsewhere
        return str(json.loads((adapter / ADAPTER_FILE).read_text("utf-8"))["base_model_name_or_path"])
    made_on = json.loads(record.read_text("utf-8"))
    named = str(made_on["base"])
    if named.startswith(STAGE_PREFIX):  # a stage made it; the registry has written where it lies
        named = str(json.loads((adapter / ADAPTER_FILE).read_text("utf-8"))["base_model_name_or_path"])
    name = own_place(workspace, named)
    if not name.startswith(EMBEDDED_PREFIX) and not is_path(name):
        return name  # a hub's name, which is the same everywhere
    base = prepare_base(workspace, ModelSettings(base=name))
    if base.digest != made_on["digest"]:
        problem = f"{adapter} was made on {made_on['base']} ({made_on['digest'][:12]}), which is now {base.digest[:12]}"
        raise InputError([Fault(problem, "bring the model back as it was", file=base.path)])
    return base.path
