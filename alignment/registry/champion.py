"""The champion as an opponent: the promoted version's model as an artifact that a run can load."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from alignment.digests import digest_of
from alignment.durable_files import folder_digest, temporary_beside
from alignment.errors import StageError
from alignment.recipe.base import BASE, CHAMPION
from alignment.recipe.graph import of_type
from alignment.recipe.recipe import Recipe
from alignment.recipe.stages.evaluate import EvaluateStage
from alignment.records import Artifact, ArtifactRef
from alignment.registry.files import ADAPTER_FILE, LINEAGE_FILE, is_adapter, require_whole
from alignment.registry.records import RegisteredVersion
from alignment.registry.store import RegistryStore
from alignment.registry.versions import find
from alignment.workspace import Workspace


def with_champion(
    workspace: Workspace, name: str, recipe: Recipe, made: Mapping[str, Artifact]
) -> tuple[Recipe, dict[str, Artifact]]:
    """The recipe and the artifacts with which the evaluation ``name`` meets the champion; without it where none is."""
    settings = dict(of_type(recipe.stages, EvaluateStage))[name]
    champion = None
    if settings.model in made:
        champion = champion_artifact(workspace, recipe.model.registered_name, made[settings.model], made[BASE])
    if champion is not None:
        return recipe, {**made, CHAMPION: champion}
    others = settings.model_copy(update={"against": tuple(one for one in settings.against if one != CHAMPION)})
    return recipe.model_copy(update={"stages": {**recipe.stages, name: others}}), dict(made)


def champion_artifact(workspace: Workspace, name: str, candidate: Artifact, base: Artifact) -> Artifact | None:
    """The model of the version that ``candidate`` would follow as champion; None where there is none.

    That is the champion, and where the candidate is itself the champion (the same run, given again) the one before it:
    the same run then compares with the same model. Raises StageError where the version cannot be loaded on ``base``.
    """
    state = RegistryStore.models(workspace).get(name)
    if state is None:
        return None
    for number in reversed(state.held()):
        version = find(workspace, f"{name}/{number}")
        if version.candidate.digest != candidate.digest:
            return _artifact(workspace, version, base)
    return None


def _artifact(workspace: Workspace, version: RegisteredVersion, base: Artifact) -> Artifact:
    """The artifact that the version was made from, where it fits the base; else one of the version's whole weights."""
    made, folder = _whole_candidate(workspace, version.candidate), Path(version.folder)
    if made is not None and (not is_adapter(made) or _made_on(Path(made.path)) == base.digest):
        return made
    require_whole(folder, version.lineage_sha256)
    weights = folder / "merged" if (folder / "merged").is_dir() else folder
    if (weights / ADAPTER_FILE).exists() and _made_on(weights) != base.digest:
        raise StageError(
            f"{version} is an adapter on another base than {base.ref()}, so it cannot be compared with; "
            "set gate.merge: true, so that versions keep whole weights"
        )
    return _published(workspace, version, weights)


def _whole_candidate(workspace: Workspace, ref: ArtifactRef) -> Artifact | None:
    """The artifact that a version was made from; None where it is gone or no longer what it was."""
    try:
        made = workspace.artifact(ref.name, ref.version)
    except (FileNotFoundError, ValueError):
        return None
    return made if made.digest == ref.digest and workspace.damage(made) is None else None


def _made_on(adapter: Path) -> str:
    return str(json.loads((adapter / "base.json").read_text("utf-8"))["digest"])


def _published(workspace: Workspace, version: RegisteredVersion, weights: Path) -> Artifact:
    """A version's own model as an artifact, linked and not copied where the file system can."""
    key = digest_of([CHAMPION, version.name, version.version, version.candidate.digest])
    if (found := workspace.find(CHAMPION, key)) is not None:
        return found
    output = temporary_beside(workspace.folder("partial") / CHAMPION)
    left = shutil.ignore_patterns("merged", LINEAGE_FILE, "README.md")
    shutil.copytree(weights, output, ignore=left, copy_function=_link)
    draft = Artifact(name=CHAMPION, kind="model", version=1, digest=folder_digest(output), path=str(output), key=key)
    return workspace.publish(draft, output)


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target
