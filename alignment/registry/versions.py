"""Versions of the aligned model: what was promoted, why, and where it came from (MLflow 3).

A version is a plain Hugging Face folder ``registry/<name>/v<N>/`` with its model card and ``lineage.json``, an MLflow
run with the parameters, metrics and curves that led to it, and an entry of MLflow's model registry. The alias
``champion`` names the promoted version; which versions held it is kept in the registered model's tags. Nothing here
touches MLflow's global state.

Order makes it safe: files are written aside and renamed, then the entry is made, then the alias moves.
"""

import contextlib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alignment.digests import digest_of
from alignment.durable_files import file_digest, make_read_only, remove_tree, rename_synced, write_text
from alignment.errors import Fault, InputError, StageError, suggestion
from alignment.evaluation.gate import GateVerdict
from alignment.recipe.graph import seen_by
from alignment.recipe.recipe import Recipe
from alignment.records import Artifact, ArtifactRef
from alignment.registry.card import write_card
from alignment.registry.fetch import fetch
from alignment.registry.files import (
    LINEAGE_FILE,
    Merge,
    is_adapter,
    model_files,
    read_record,
    require_whole,
    write_model,
)
from alignment.registry.lineage import chat_template_digest, problems, trace
from alignment.registry.records import Provenance, RegisteredVersion, VersionDetails, VersionRecord
from alignment.registry.store import CHAMPION, ModelState, RegistryStore
from alignment.registry.task_results import task_results
from alignment.workspace import Workspace

LONGEST_REASON = 3500  # characters of who and why together: MLflow keeps 5,000 of a move


def register(
    workspace: Workspace,
    recipe: Recipe,
    artifacts: Mapping[str, Artifact],
    candidate: str,
    verdict: GateVerdict,
    provenance: Provenance,
    *,
    merge: Merge | None = None,
) -> RegisteredVersion:
    """Registers ``artifacts[candidate]`` as the next version: the champion where the verdict passed.

    ``artifacts`` are all of the run's by stage name, the base model included. ``merge`` writes whole weights into a
    folder; it is called for an adapter where the recipe's gate asks for it. The same candidate with the same verdict
    gives back the version that is there, and moves no alias. Raises StageError where the lineage is broken.
    """
    name, artifact = recipe.model.registered_name, artifacts[candidate]
    want_merged = recipe.gate is not None and recipe.gate.merge and is_adapter(artifact)
    if want_merged and merge is None:
        raise StageError("the recipe's gate asks for merged weights, and nothing was given that merges them")
    decided = verdict.model_dump(mode="json", exclude={"look": {"spends"}})  # at which level, not whose level it was
    identity = digest_of([artifact.digest, decided, want_merged])
    roots = [candidate, *([recipe.gate.evaluation] if recipe.gate and recipe.gate.evaluation in artifacts else [])]
    lineage = trace(workspace, artifacts, roots)
    store = RegistryStore(workspace, name)
    with store.alone():
        for row in store.find(identity):
            if store.folder(int(row.version)).is_dir():
                store.settle(row)
                return _listed(store, store.get(int(row.version)))
        partial = workspace.folder("registry", name) / ".partial"
        remove_tree(partial)
        seen = seen_by(candidate, recipe.stages, artifacts)
        write_model(partial, artifact, seen, merge if want_merged else None)
        record = VersionRecord(
            name=name,
            version=store.next_version(),
            recipe=recipe.name,
            provenance=provenance,
            candidate=artifact.ref(),
            verdict=verdict,
            chat_template=chat_template_digest(Path(artifact.path)),
            lineage=lineage,
            files=model_files(partial),
        )
        return _enter(store, record, recipe, artifacts, partial, identity)


def _enter(
    store: RegistryStore,
    record: VersionRecord,
    recipe: Recipe,
    artifacts: Mapping[str, Artifact],
    partial: Path,
    identity: str,
) -> RegisteredVersion:
    run_id = store.log_run(record.provenance.run, recipe, artifacts, _tags(record, identity))
    while True:
        folder = store.folder(record.version)
        write_card(partial, record, recipe, seen_by(record.candidate.name, recipe.stages, artifacts))
        write_text(partial / LINEAGE_FILE, record.model_dump_json(indent=1) + "\n")
        tags = _tags(record, identity) | {"lineage_sha256": file_digest(partial / LINEAGE_FILE)}
        make_read_only(partial)
        remove_tree(folder)  # no entry names one that is there: it was left by a process that died here
        rename_synced(partial, folder)
        row = store.create_version(folder, run_id, tags)
        if int(row.version) == record.version:
            break
        # Another workspace shares this registry and took the number: take the next one.
        store.delete_version(int(row.version))
        folder.rename(partial)
        record = record.model_copy(update={"version": int(row.version) + 1})
    store.settle(row)
    return _listed(store, store.get(record.version))


def list_versions(workspace: Workspace, name: str | None = None) -> list[RegisteredVersion]:
    """Every version (of one registered model), newest first. Raises InputError for a model that is not there."""
    models = RegistryStore.models(workspace)
    if name is not None and name not in models:
        remedy = suggestion(name, models) if models else "run a recipe with a gate first"
        raise InputError([Fault(f"there is no registered model {name!r}", remedy)])
    versions = []
    for model, state in models.items():
        if name in (None, model):
            store = RegistryStore(workspace, model)
            versions += [_listed(store, row, state) for row in store.all()]
    return sorted(versions, key=lambda version: (version.registered, version.version), reverse=True)


def find(workspace: Workspace, reference: str) -> RegisteredVersion:
    """The version that ``policy@champion``, ``policy/3`` or ``policy`` (its champion) names, its files in its folder.

    Where another workspace registered it, its files are read back from where MLflow has them. Raises InputError, with
    the nearest that there is, where there is no such version, and where its files are not to be had.
    """
    version = _named(workspace, reference)
    fetch(RegistryStore(workspace, version.name), version)
    return version


def _named(workspace: Workspace, reference: str) -> RegisteredVersion:
    name, _, alias = reference.partition("@")
    name, _, number = name.partition("/")
    if name not in RegistryStore.models(workspace):
        raise _unknown(workspace, reference, f"there is no registered model {name!r}")
    versions = list_versions(workspace, name)
    if number:
        for version in versions:
            if str(version.version) == number.removeprefix("v"):
                return version
        raise _unknown(workspace, reference, f"there is no version {number} of {name}")
    alias = alias or CHAMPION
    for version in versions:
        if alias in version.aliases:
            return version
    raise _unknown(workspace, reference, f"{name} has no alias {alias!r}")


def show(workspace: Workspace, reference: str) -> VersionDetails:
    """A version with its whole lineage, every digest checked against the disk. Raises InputError as :func:`find`."""
    version = _named(workspace, reference)
    store = RegistryStore(workspace, version.name)
    with contextlib.suppress(InputError):  # what is missing is said below
        fetch(store, version)
    record, found = read_record(Path(version.folder), version.lineage_sha256)
    if record is not None:
        found |= problems(workspace, record.lineage)
    return VersionDetails(
        version=version,
        record=record,
        intact=not found,
        problems=found,
        history=store.state().history,
        tasks=tuple(task_results(workspace, version)),
    )


def promote(
    workspace: Workspace, reference: str, *, despite_gate: bool = False, by: str = "", reason: str = ""
) -> RegisteredVersion:
    """Makes a version the champion by hand; who did it, and why, stands in the champion's history.

    For a version whose gate waits for a person this is the approval. Raises InputError for a version that is not
    there, that the gate refused (unless ``despite_gate`` and a reason are given), or whose files are not what was
    registered.
    """
    version = find(workspace, reference)
    store = RegistryStore(workspace, version.name)
    refused = store.get(version.version).tags["gate"] == "refused"
    if refused and not despite_gate:
        remedy = "look at why with `rlhf models show`; on better evidence promote it with --force and --reason"
        raise InputError([Fault(f"the gate refused {version}", remedy)])
    if refused and not reason.strip():
        problem = f"the gate refused {version}, and no reason is given"
        raise InputError([Fault(problem, "say why in --reason: it is kept with the version", field="--reason")])
    if len(reason) + len(by) > LONGEST_REASON:
        problem = f"the reason and the name have {len(reason) + len(by):,} characters"
        raise InputError([Fault(problem, f"say it in at most {LONGEST_REASON:,}", field="--reason")])
    with store.alone():
        require_whole(Path(version.folder), version.lineage_sha256)
        if CHAMPION not in version.aliases:
            how = "promoted despite the gate" if refused else "approved" if version.waits else "promoted by hand"
            who, why = f" by {by}" if by else "", f": {reason.strip()}" if reason.strip() else ""
            store.set_champion(version.version, f"{how}{who}{why}")
    return find(workspace, f"{version.name}/{version.version}")


def rollback(workspace: Workspace, name: str) -> RegisteredVersion:
    """Gives the alias ``champion`` back to the version that held it before; again, to the one before that.

    Raises InputError where no version held it before, or its files are not what was registered.
    """
    list_versions(workspace, name)
    store = RegistryStore(workspace, name)
    with store.alone():
        held = store.state().held()
        if len(held) < 2:
            raise InputError([Fault(f"no version of {name} was champion before", "promote a version by its number")])
        previous = find(workspace, f"{name}/{held[-2]}")
        require_whole(Path(previous.folder), previous.lineage_sha256)
        store.set_champion(previous.version, "rolled back")
    return find(workspace, f"{name}@{CHAMPION}")


def _tags(record: VersionRecord, identity: str) -> dict[str, str]:
    """What MLflow shows of a version, its lineage included."""
    tags = {
        "identity": identity,
        "recipe": record.recipe,
        "recipe_digest": record.provenance.recipe_digest,
        "run": record.provenance.run,
        "commit": record.provenance.commit or "",
        "gate": "passed" if record.verdict.passed else "waiting" if record.verdict.waits else "refused",
        "candidate": record.candidate.model_dump_json(),
        "chat_template": record.chat_template or "",
    }
    return tags | {f"lineage.{node.name}": str(node) for node in record.lineage.nodes}


def _listed(store: RegistryStore, row: Any, state: ModelState | None = None) -> RegisteredVersion:
    """An entry as a record; ``state`` is the model's, where it was read already."""
    tags, version = row.tags, int(row.version)
    state = store.state() if state is None else state
    return RegisteredVersion(
        name=row.name,
        version=version,
        aliases=tuple(state.aliases_of(version)),
        folder=str(store.folder(version)),
        candidate=ArtifactRef.model_validate_json(tags["candidate"]),
        passed=tags["gate"] == "passed",
        waits=tags["gate"] == "waiting" and all(change.version != version for change in state.history),
        run=tags["run"],
        recipe=tags["recipe"],
        recipe_digest=tags["recipe_digest"],
        commit=tags["commit"] or None,
        registered=datetime.fromtimestamp(row.creation_timestamp / 1000, UTC),
        mlflow_run=row.run_id,
        lineage_sha256=tags["lineage_sha256"],
    )


def _unknown(workspace: Workspace, reference: str, problem: str) -> InputError:
    """That a reference names nothing, and which one was probably meant."""
    versions = list_versions(workspace)
    known = [f"{version.name}@{alias}" for version in versions for alias in version.aliases]
    known += [str(version).replace(" v", "/") for version in versions]
    remedy = suggestion(reference, known) if known else "run a recipe with a gate first"
    return InputError([Fault(problem, remedy)])
