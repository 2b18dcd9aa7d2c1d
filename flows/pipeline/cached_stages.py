"""What a run would take from the cache, found without running or changing anything."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from alignment.errors import InputError
from alignment.models.base_model import prepare_base
from alignment.recipe.base import BASE, CHAMPION, MADE_BASE
from alignment.recipe.graph import of_type, seen_by, stage_inputs
from alignment.recipe.resolved import ResolvedRecipe
from alignment.recipe.run_settings import ModelSettings
from alignment.recipe.stages.feedback.preferences import HumanPreferencesStage
from alignment.records import Artifact
from alignment.workspace import Workspace
from flows.pipeline.stage_task import make_job, sources_of


@dataclass(frozen=True, slots=True)
class CacheState:
    """What a run would find of a stage.

    "cached": ``artifact``, whole. "unfinished": a checkpoint to go on from. "new": nothing. "unknown": what it reads is
    known only when the run comes to it: an input that is made anew, raters' votes, or who is champion then.
    """

    state: Literal["cached", "unfinished", "new", "unknown"]
    artifact: Artifact | None = None


def cached_stages(resolved: ResolvedRecipe, workspace: Workspace) -> dict[str, CacheState]:
    """What the cache holds of each stage of a recipe whose check has passed."""
    recipe, data = resolved.recipe, resolved.data
    base = _base(recipe.model, workspace)
    made: dict[str, Artifact] = {} if base is None else {BASE: base}
    people = dict(of_type(recipe.stages, HumanPreferencesStage))
    states = {}
    for name, settings in recipe.stages.items():
        sources = {source for named in stage_inputs(settings).values() for source in named}
        seen = seen_by(name, recipe.stages, made)
        if name in people or CHAMPION in sources or not sources | sources_of(recipe, settings) <= seen.keys():
            states[name] = CacheState("unknown" if any(workspace.artifacts(name)) else "new")
            continue
        key = make_job(name, recipe, seen, data, workspace).key
        artifact = workspace.find(name, key)
        if artifact is not None:
            made[name] = artifact
            states[name] = CacheState("cached", artifact)
        else:
            checkpoints = workspace.root / "partial" / key / "checkpoints"
            begun = checkpoints.is_dir() and any(checkpoints.iterdir())
            states[name] = CacheState("unfinished" if begun else "new")
    return states


def _base(model: ModelSettings, workspace: Workspace) -> Artifact | None:
    """The base model where it is on this machine; nothing is converted or downloaded."""
    if model.base == MADE_BASE:
        return None
    embedded = model.base.removeprefix("embedded:")
    if embedded != model.base:
        present = (workspace.root / "models" / embedded).is_dir()
    else:
        present = Path(model.base).is_dir() or _downloaded(model)
    try:
        return prepare_base(workspace, model) if present else None
    except InputError:
        return None


def _downloaded(model: ModelSettings) -> bool:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        snapshot_download(model.base, revision=model.revision, local_files_only=True)
    except (OSError, HFValidationError):
        return False
    return True
